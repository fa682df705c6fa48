"""Measure a classifier on labelled images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from classifier import bundle, releases, store
from classifier.errors import ClassifierError

from .data import DataError, Images, load

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH = 250


class Classifies(Protocol):
    """What can be measured: `model.Classifier`, from here or out of an archive."""

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 N×32×32×3 pixels to float32 N×classes probabilities."""


def probabilities(classifier: Classifies, images: Images) -> NDArray[np.float32]:
    """Classify all images, in batches: float32 N×classes."""
    pixels = images.pixels.numpy()
    parts = [classifier.probabilities(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)]
    return np.concatenate(parts)


def accuracy(classifier: Classifies, images: Images) -> float:
    """Return the share of images, in [0, 1], whose likeliest label is the right one."""
    right = probabilities(classifier, images).argmax(1) == images.targets.numpy()
    return float(right.mean())


def main() -> int:
    """Print the accuracy of the weights that an archive holds: `make evaluate`."""
    parser = argparse.ArgumentParser(prog="make evaluate", description=main.__doc__)
    parser.add_argument("--archive", help="model:version in the model store; else the default")
    parser.add_argument("--data", help="folder that holds cifar-10-batches-py")
    arguments = parser.parse_args()
    try:
        release = releases.read(Path("releases.toml"))[0]
        reference = arguments.archive or f"{release.model}:{release.default}"
        archive = store.find(Path("model_store"), reference)
        images = load(train=False, root=arguments.data)
        measured = accuracy(bundle.load(archive), images)
    except (ClassifierError, DataError) as error:
        print(f"make evaluate: {error}", file=sys.stderr)
        return 1
    print(f"{archive}: {measured:.2%} of {len(images.targets):,} test images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
