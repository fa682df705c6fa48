"""Labelled images to train on and to measure with: CIFAR-10, or a folder of one's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from model.image import SHAPE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


class DataError(ValueError):
    """A data set is missing or can't be used; the message names the path."""


class Images(NamedTuple):
    """Labelled images in memory: pixels uint8 N×32×32×3 in RGB, targets int64 N."""

    pixels: torch.Tensor
    targets: torch.Tensor

    @staticmethod
    def of(pixels: NDArray[np.uint8], targets: Sequence[int]) -> Images:
        """Take pixels and targets as they come from a file."""
        return Images(torch.from_numpy(pixels), torch.tensor(targets, dtype=torch.int64))


NONE = Images(torch.empty(0, *SHAPE, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))


def split(images: Images, held_out: int, seed: int) -> tuple[Images, Images]:
    """Return images without so many of them, drawn at random by the seed, and these."""
    order = torch.randperm(len(images.targets), generator=torch.Generator().manual_seed(seed))
    first, second = order[held_out:], order[:held_out]
    return (
        Images(images.pixels[first], images.targets[first]),
        Images(images.pixels[second], images.targets[second]),
    )


@dataclass(frozen=True)
class Dataset:
    """What is trained on, and what was kept out to measure with."""

    labels: tuple[str, ...]
    train: Images
    held_out: Images
    held_out_name: str

    def labelled(self, labels: Sequence[str], whose: str) -> Dataset:
        """Return it with its classes in the order of these labels.

        Raises:
            DataError: these are other classes; the message says whose labels they are.
        """
        if sorted(labels) != sorted(self.labels):
            raise DataError(
                f"the data has classes {', '.join(self.labels)}, but {whose} has "
                f"{', '.join(labels)}"
            )
        numbers = torch.tensor([labels.index(label) for label in self.labels])

        def numbered(images: Images) -> Images:
            return images._replace(targets=numbers[images.targets])

        train, held_out = numbered(self.train), numbered(self.held_out)
        return replace(self, labels=tuple(labels), train=train, held_out=held_out)


def load(root: str | None = None, train: bool = True) -> Dataset:
    """Load a data set.

    Args:
        root: holds `train/<class>/*` and `val/<class>/*`, or CIFAR-10 in torchvision's format;
            None: CIFAR-10, wherever it is found.
        train: whether the training images are wanted, too; else there are none of them.

    Raises:
        DataError: there is no such data, or it can't be used.
    """
    from . import cifar10, imagefolder

    if root is None or cifar10.is_in(Path(root)):
        return Dataset(
            labels=cifar10.LABELS,
            train=cifar10.load(train=True, root=root) if train else NONE,
            held_out=cifar10.load(train=False, root=root),
            held_out_name="cifar10-test",
        )
    return imagefolder.load(Path(root), train)
