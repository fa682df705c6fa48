"""Measure a classifier on labelled images: out of an archive, or on a running server."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tqdm import tqdm

from classifier import Client
from classifier.archiving import archive as archives
from classifier.archiving import bundle, store
from classifier.errors import ClassifierError, PredictionError
from classifier.place import Place
from classifier.serving import releases

from .arrivals import ARRIVALS, arrive, encode
from .data import DataError, Images, load
from .metrics import calibration_error
from .strangers import STRANGERS, draw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from classifier import Classifier
    from model.engine import Engine

BATCH = 250
SURE = 0.9  # a probability that many would act on
STRANGE = 1000  # images of none of the classes, of each kind


class Answers(NamedTuple):
    """What was said of N images: the likeliest label's number, and its probability in [0, 1]."""

    predicted: NDArray[np.int64]
    confidence: NDArray[np.float32]


def probabilities(engine: Engine | Classifier, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Classify images, uint8 N×32×32×3, in batches: float32 N×classes."""
    parts = [engine.probabilities(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)]
    return np.concatenate(parts)


def accuracy(engine: Engine | Classifier, images: Images) -> float:
    """Return the share of images, in [0, 1], whose likeliest label is the right one."""
    right = probabilities(engine, images.pixels.numpy()).argmax(1) == images.targets.numpy()
    return float(right.mean())


def classify(classifier: Classifier, pixels: NDArray[np.uint8]) -> Answers:
    """Classify images, uint8 N×32×32×3."""
    found = probabilities(classifier, pixels)
    return Answers(found.argmax(1), found.max(1))


def ask(
    client: Client, version: str | None, labels: Sequence[str], pixels: NDArray[np.uint8]
) -> Answers:
    """Classify images, uint8 N×32×32×3, on a server; each is sent as a PNG.

    Args:
        client: of the server.
        version: which answers; the default one if None.
        labels: in the order of their numbers.
        pixels: the images.

    Raises:
        PredictionError: an image gets no answer.
        DataError: an answer is none of the labels.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    files = (encode(image, "PNG") for image in pixels)
    found = []
    for one in tqdm(client.predict_each(files, version), total=len(pixels), unit=" images"):
        if isinstance(one, PredictionError):
            raise one
        if one.label not in numbers:
            raise DataError(f"the server answers {one.label!r}, which the data does not have")
        found.append((numbers[one.label], one.probability))
    return Answers(np.array([n for n, _ in found]), np.array([p for _, p in found]))


def main() -> int:
    """Print the accuracy of an archive's weights, or of a running server: `make evaluate`."""
    parser = argparse.ArgumentParser(prog="make evaluate", description=main.__doc__)
    parser.add_argument("--archive", help="model:version in the model store; else the default")
    parser.add_argument("--data", help="val/<class>/*, or CIFAR-10")
    parser.add_argument("--server", help="inference address, such as http://127.0.0.1:8080")
    parser.add_argument("--engine", help="openvino or torch; else what the archive picks")
    parser.add_argument("--details", action="store_true", help="by label, calibration, limits")
    arguments = parser.parse_args()
    try:
        for line in evaluate(
            arguments.archive,
            arguments.data,
            arguments.server,
            arguments.engine,
            arguments.details,
        ):
            print(line)
    except (ClassifierError, DataError) as error:
        print(f"make evaluate: {error}", file=sys.stderr)
        return 1
    return 0


def evaluate(
    reference: str | None, root: str | None, server: str | None, engine: str | None, details: bool
) -> Iterator[str]:
    """Measure on a data set's held-out images; tell what was found, in words.

    Args:
        reference: `model:version`; the default of releases.toml if None.
        root: of the data set; CIFAR-10 if None.
        server: ask this one, with the token in CLASSIFIER_TOKEN, if any; if None, load the archive.
        engine: what runs the archive's net; what its model-config.yaml picks if None.
        details: tell also of each label, of calibration, and of other images.
    """
    place = Place()
    release = releases.read(place.releases)[0]
    model, _, version = (reference or f"{release.model}:{release.default}").partition(":")
    dataset = load(root, train=False)
    measure: Callable[[NDArray[np.uint8]], Answers]
    if server:
        where = f"{server.rstrip('/')}/predictions/{model}/{version}".rstrip("/")
        client = Client(server, model, os.environ.get("CLASSIFIER_TOKEN"))
        measure = partial(ask, client, version or None, dataset.labels)
    else:
        if (model, version) == (archives.MODEL, archives.VERSION):
            archives.refresh(place.model_store)
        archive = store.find(place.model_store, f"{model}:{version}")
        where, classifier = str(archive), bundle.load(archive, engine)
        dataset = dataset.labelled(classifier.labels, where)
        measure = partial(classify, classifier)
    pixels, targets = (tensor.numpy() for tensor in dataset.held_out)
    found = measure(pixels)
    right = found.predicted == targets
    yield f"{where}: {right.mean():.2%} of {len(targets):,} images right ({dataset.held_out_name})"
    if details:
        yield from _by_label(dataset.labels, targets, right)
        yield from _calibration(found, right)
        for how in ARRIVALS:
            yield f"{how}: {(measure(arrive(pixels, how)).predicted == targets).mean():.2%} right"
        for kind in STRANGERS:
            sure = measure(draw(kind, STRANGE)).confidence >= SURE
            yield f"{SURE:.0%} sure or more: {sure.mean():.1%} of {STRANGE:,} images of {kind}"


def _by_label(
    labels: Sequence[str], targets: NDArray[np.int64], right: NDArray[np.bool_]
) -> Iterator[str]:
    for number, label in enumerate(labels):
        yield f"{label}: {right[targets == number].mean():.2%} right"


def _calibration(found: Answers, right: NDArray[np.bool_]) -> Iterator[str]:
    yield f"expected calibration error: {calibration_error(found.confidence, right):.2%}"
    sure = found.confidence >= SURE
    yield f"{SURE:.0%} sure or more: {sure.mean():.1%} of the images"
    if sure.any():
        yield f"  and of these {right[sure].mean():.2%} are right"


if __name__ == "__main__":
    sys.exit(main())
