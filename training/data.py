"""CIFAR-10, through torchvision's own loader."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch
from torchvision.datasets import CIFAR10

ROOTS = ("data", "../shared/cifar10")
"""Where CIFAR-10 is looked for when neither DATA nor CIFAR10_ROOT says where it is."""


class DataError(ValueError):
    """The data set is missing or damaged; the message says where."""


class Images(NamedTuple):
    """A data set in memory: pixels uint8 N×32×32×3 in RGB, targets int64 N."""

    pixels: torch.Tensor
    targets: torch.Tensor


def find(root: str | None = None) -> Path | None:
    """Return the folder that holds `cifar-10-batches-py`, or None where there is none.

    Args:
        root: the only folder to look in; else CIFAR10_ROOT, and else each of ROOTS.
    """
    root = root or os.environ.get("CIFAR10_ROOT")
    candidates = [root] if root else ROOTS
    return next((Path(r) for r in candidates if (Path(r) / CIFAR10.base_folder).is_dir()), None)


def load(train: bool, root: str | None = None) -> Images:
    """Load the 50,000 training or the 10,000 test images; downloads them to data/ if missing.

    Raises:
        DataError: the folder that was asked for holds no CIFAR-10, files are damaged, or the
            download failed.

    """
    found = find(root)
    if found is None and root:
        raise DataError(f"{root} holds no {CIFAR10.base_folder}, as torchvision's CIFAR-10 does")
    folder = found or Path(os.environ.get("CIFAR10_ROOT", ROOTS[0]))
    try:
        data = CIFAR10(folder, train=train, download=found is None)
    except (OSError, RuntimeError) as error:
        raise DataError(f"CIFAR-10 can't be read from {folder}, nor downloaded: {error}") from None
    return Images(torch.from_numpy(data.data), torch.tensor(data.targets))
