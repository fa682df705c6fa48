"""Measure a classifier on labelled images: out of an archive, or on a running server."""

from __future__ import annotations

import argparse
import io
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from requests.adapters import HTTPAdapter
from tqdm import tqdm

from classifier import bundle, http, releases, store
from classifier.errors import ClassifierError

from .arrivals import ARRIVALS, arrive
from .data import DataError, Images, load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from classifier import Classifier

BATCH = 250
CONNECTIONS = 32


def probabilities(classifier: Classifier, images: Images) -> NDArray[np.float32]:
    """Classify all images, in batches: float32 N×classes."""
    pixels = images.pixels.numpy()
    parts = [classifier.probabilities(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)]
    return np.concatenate(parts)


def accuracy(classifier: Classifier, images: Images) -> float:
    """Return the share of images, in [0, 1], whose likeliest label is the right one."""
    right = probabilities(classifier, images).argmax(1) == images.targets.numpy()
    return float(right.mean())


def served_accuracy(url: str, images: Images, labels: tuple[str, ...]) -> float:
    """Return the share of images, in [0, 1], that a server labels right, each sent as a PNG.

    Args:
        url: of the model, such as http://127.0.0.1:8080/predictions/cifar10.
        images: uint8 32×32 pixels and their targets.
        labels: in the order of the targets.

    Raises:
        ServerError: an answer is none.
    """
    with http.session() as session, ThreadPoolExecutor(CONNECTIONS) as pool:
        session.mount("http", HTTPAdapter(pool_maxsize=CONNECTIONS))

        def label(pixels: NDArray[np.uint8]) -> str:
            return next(iter(http.predict(session, url, _png(pixels))))

        answers = tqdm(
            pool.map(label, images.pixels.numpy()), total=len(images.targets), unit=" images"
        )
        right = [labels[t] == got for t, got in zip(images.targets.tolist(), answers, strict=True)]
    return float(np.mean(right))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def main() -> int:
    """Print the accuracy of an archive's weights, or of a running server: `make evaluate`."""
    parser = argparse.ArgumentParser(prog="make evaluate", description=main.__doc__)
    parser.add_argument("--archive", help="model:version in the model store; else the default")
    parser.add_argument("--data", help="val/<class>/*, or CIFAR-10")
    parser.add_argument("--server", help="inference address, such as http://127.0.0.1:8080")
    parser.add_argument("--arrivals", action="store_true", help="also as JPEG, and enlarged")
    arguments = parser.parse_args()
    try:
        for line in evaluate(
            arguments.archive, arguments.data, arguments.server, arguments.arrivals
        ):
            print(line)
    except (ClassifierError, DataError) as error:
        print(f"make evaluate: {error}", file=sys.stderr)
        return 1
    return 0


def evaluate(
    reference: str | None, root: str | None, server: str | None, arrivals: bool
) -> Iterator[str]:
    """Measure on a data set's held-out images; tell what was found, in words.

    Args:
        reference: `model:version`; the default of releases.toml if None.
        root: of the data set; CIFAR-10 if None.
        server: ask this one; if None, load the archive.
        arrivals: measure also in each of the ways of ARRIVALS.
    """
    release = releases.read(Path("releases.toml"))[0]
    model, _, version = (reference or f"{release.model}:{release.default}").partition(":")
    dataset = load(root)
    if server:
        where = f"{server.rstrip('/')}/predictions/{model}/{version}".rstrip("/")
        measure = partial(served_accuracy, where, labels=dataset.labels)
    else:
        archive = store.find(Path("model_store"), f"{model}:{version}")
        where, classifier = str(archive), bundle.load(archive)
        if classifier.labels != dataset.labels:
            raise DataError(f"{root} has classes {dataset.labels}, {where} {classifier.labels}")
        measure = partial(accuracy, classifier)
    count, name = len(dataset.held_out.targets), dataset.held_out_name
    yield f"{where}: {measure(images=dataset.held_out):.2%} of {count:,} images right ({name})"
    for how in ARRIVALS if arrivals else ():
        yield f"{how}: {measure(images=arrive(dataset.held_out, how)):.2%}"


if __name__ == "__main__":
    sys.exit(main())
