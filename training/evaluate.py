"""Measure a classifier on labelled images: out of an archive, or on a running server."""

from __future__ import annotations

import argparse
import io
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import requests
from PIL import Image
from tqdm import tqdm

from classifier import bundle, releases, store
from classifier.errors import ClassifierError

from .arrivals import ARRIVALS, arrive
from .data import DataError, Images, load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

BATCH = 250
CONNECTIONS = 32


class Classifies(Protocol):
    """What can be measured: `model.Classifier`, from here or out of an archive."""

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 N×32×32×3 pixels to float32 N×classes probabilities."""


class ServerError(RuntimeError):
    """A server answered something else than labels."""


def probabilities(classifier: Classifies, images: Images) -> NDArray[np.float32]:
    """Classify all images, in batches: float32 N×classes."""
    pixels = images.pixels.numpy()
    parts = [classifier.probabilities(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)]
    return np.concatenate(parts)


def accuracy(classifier: Classifies, images: Images) -> float:
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
    with requests.Session() as session, ThreadPoolExecutor(CONNECTIONS) as pool:
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=CONNECTIONS)
        session.mount("http", adapter)

        def label(pixels: NDArray[np.uint8]) -> str:
            answer = session.put(url, data=_png(pixels), timeout=60)
            if not answer.ok:
                raise ServerError(f"{url} answers {answer.status_code}: {answer.text}")
            return str(next(iter(answer.json())))

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
    except (ClassifierError, DataError, ServerError, requests.RequestException) as error:
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
