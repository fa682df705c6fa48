"""CIFAR-10, through torchvision's own loader."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10

from model.image import SHAPE, resize

from .data import DataError, Images

LABELS = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""Short names, in the order of the data set's own."""
FOLDER: str = CIFAR10.base_folder
ROOTS = ("data", "../shared/cifar10")
"""Where CIFAR-10 is looked for when neither DATA nor CIFAR10_ROOT says where it is."""


def is_in(root: Path) -> bool:
    """Tell whether a folder holds CIFAR-10 in torchvision's format."""
    return (root / FOLDER).is_dir()


def find(root: str | None = None) -> Path | None:
    """Return the folder that holds CIFAR-10, or None where there is none.

    Args:
        root: the only folder to look in; else CIFAR10_ROOT, and else each of ROOTS.
    """
    root = root or os.environ.get("CIFAR10_ROOT")
    candidates = [root] if root else ROOTS
    return next((Path(candidate) for candidate in candidates if is_in(Path(candidate))), None)


def load(train: bool, root: str | None = None) -> Images:
    """Load the 50,000 training or the 10,000 test images; downloads them to data/ if missing.

    Raises:
        DataError: the folder that was asked for holds no CIFAR-10, files are damaged, or the
            download failed.
    """
    found = find(root)
    if found is None and root:
        raise DataError(f"{root} holds no {FOLDER}, as torchvision's CIFAR-10 does")
    folder = found or Path(os.environ.get("CIFAR10_ROOT", ROOTS[0]))
    ours = found is None or folder == Path(ROOTS[0])  # perhaps half downloaded
    try:
        data = CIFAR10(folder, train=train, download=ours)
    except (OSError, RuntimeError) as error:
        if ours:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()
        raise DataError(
            f"CIFAR-10 can't be read from {folder}, nor downloaded: {error}. DATA=… (or "
            f"CIFAR10_ROOT) names the folder in which {FOLDER}/ lies, as torchvision leaves it"
        ) from None
    pixels = data.data
    if pixels.shape[1:] != SHAPE:  # another net takes another size
        pixels = np.stack([resize(Image.fromarray(image)) for image in pixels])
    return Images.of(pixels, data.targets)
