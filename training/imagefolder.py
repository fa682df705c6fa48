"""Images of one's own: a folder for each class, in `train/` and in `val/`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from classifier.predicting.pictures import is_hidden
from model.image import SHAPE, ImageError, decode

from .data import NONE, DataError, Dataset, Images

if TYPE_CHECKING:
    from pathlib import Path

HELD_OUT = "val"


def load(root: Path, train: bool = True) -> Dataset:
    """Load `root/train/<class>/*` and `root/val/<class>/*`; the classes are the labels, sorted.

    Without the training images, if they are not wanted: only `val/` need be there then.

    The images go through the same preprocessing as those that are served. What is hidden, as
    `.ipynb_checkpoints/`, is neither a class nor an image.

    Raises:
        DataError: a folder or class is missing or empty, there is but one class, the name of one
            is not UTF-8, or a file is no image that can be read.
    """
    first, held_out = root / "train", root / HELD_OUT
    labels = _classes(first if train else held_out)
    if train:
        _check_classes(first, held_out, labels)
    images = _images(first, labels) if train else NONE
    return Dataset(labels, images, _images(held_out, labels), HELD_OUT)


def _check_classes(train: Path, held_out: Path, labels: tuple[str, ...]) -> None:
    if len(labels) < 2:
        raise DataError(f"{train} has one class ({labels[0]}): a classifier needs two or more")
    unmatched = sorted(set(labels) ^ set(_classes(held_out)))
    if unmatched:
        has, lacks = (train, held_out) if unmatched[0] in labels else (held_out, train)
        raise DataError(f"{has / unmatched[0]} is there, but {lacks / unmatched[0]} is not")


def _classes(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise DataError(f"{folder} is missing: images belong into {folder}/<class>/")
    paths = [p for p in folder.iterdir() if p.is_dir() and not is_hidden(p, folder)]
    if not paths:
        raise DataError(f"{folder} holds no classes: images belong into {folder}/<class>/")
    for path in paths:
        _check_name(path)
    return tuple(sorted(path.name for path in paths))


def _check_name(path: Path) -> None:
    """Fail where a class's name can't be written as a label."""
    try:
        path.name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise DataError(
            f"{shown}: a class's name is its label, and this one is not UTF-8"
        ) from None


def _images(folder: Path, labels: tuple[str, ...]) -> Images:
    files = [(path, i) for i, label in enumerate(labels) for path in _files(folder / label)]
    pixels = np.empty((len(files), *SHAPE), np.uint8)
    for row, (path, _) in zip(pixels, tqdm(files, desc=str(folder), unit=" images"), strict=True):
        try:
            row[:] = decode(path.read_bytes())
        except (ImageError, OSError) as error:
            raise DataError(f"{path}: {error}") from None
    return Images.of(pixels, [target for _, target in files])


def _files(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.rglob("*") if p.is_file() and not is_hidden(p, folder))
    if not found:
        raise DataError(f"{folder} holds no images")
    return found
