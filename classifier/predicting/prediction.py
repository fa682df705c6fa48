"""What is asked and answered, whoever answers: a server or an archive."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError, PredictionError


@runtime_checkable
class Readable(Protocol):
    """Whatever can be read, such as an open file."""

    def read(self) -> bytes:
        """Return the bytes of an image file."""


ORIENTATION = 0x0112
"""The number of EXIF's entry that says which way is up."""
Picture: TypeAlias = str | PathLike[str] | bytes | Readable | Image.Image | NDArray[np.uint8]
"""A path, the bytes of an image file, a file that is open for reading them, a PIL image, or uint8
H×W×3 RGB pixels in [0, 255]."""


@dataclass(frozen=True)
class Prediction:
    """What the model makes of one picture.

    Attributes:
        probabilities: of the five likeliest labels, or of all where there are fewer, each in
            [0, 1], likeliest first.
        version: the version of the model that answered.
    """

    probabilities: dict[str, float]
    version: str

    @property
    def label(self) -> str:
        """The likeliest label."""
        return next(iter(self.probabilities))

    @property
    def probability(self) -> float:
        """The likeliest label's probability, in [0, 1]."""
        return self.probabilities[self.label]


Found: TypeAlias = Prediction | PredictionError
"""What came of one picture of many: a prediction, or why there is none."""


def prediction_of(found: Found) -> Prediction:
    """Return the prediction.

    Raises:
        PredictionError: there is none.
    """
    if isinstance(found, PredictionError):
        raise found
    return found


def to_bytes(picture: Picture) -> bytes:
    """Return the bytes of an image file; what is none becomes a PNG, which loses nothing.

    Raises:
        InputError: the file can't be read, or an array is not uint8 H×W×3.
    """
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, Readable):
        return _read(picture)
    if isinstance(picture, str | PathLike):
        try:
            return Path(picture).read_bytes()
        except OSError as error:
            raise InputError(f"{picture} can't be read: {error.strerror}") from None
    return _encode(picture if isinstance(picture, Image.Image) else _from_array(picture))


def to_input(picture: Picture) -> bytes | InputError:
    """Return the bytes of an image file, or why there are none."""
    try:
        return to_bytes(picture)
    except InputError as error:
        return error


def _read(file: Readable) -> bytes:
    try:
        data = file.read()
    except (OSError, ValueError) as error:  # a closed file gives the second
        raise InputError(f"{file} can't be read: {error}") from None
    if not isinstance(data, bytes):
        raise InputError(f"{file} gives {type(data).__name__}: open the file for reading bytes")
    return data


def _from_array(pixels: NDArray[np.uint8]) -> Image.Image:
    if not isinstance(pixels, np.ndarray):
        kind = type(pixels).__name__
        raise InputError(f"a {kind} is no picture: give a path, bytes, a PIL image or an array")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        shape = "×".join(map(str, pixels.shape))
        raise InputError(f"an array of {pixels.dtype} {shape} is no picture: give uint8 H×W×3, RGB")
    return Image.fromarray(pixels)


def _encode(image: Image.Image) -> bytes:
    """Return the image as a PNG: its pixels, and which way is up."""
    file = io.BytesIO()
    try:
        image.load()  # first: Pillow turns a TIFF by itself when it is decoded
        sent = image.convert("RGB") if image.mode == "CMYK" else image
        sent.save(file, "PNG", compress_level=1, exif=orientation(image))
    except Exception as error:  # whatever Pillow makes of a mode that PNG has not, or of damage
        raise InputError(f"a PIL image of mode {image.mode} can't be sent: {error}") from None
    return file.getvalue()


def orientation(image: Image.Image) -> Image.Exif:
    """Return EXIF that says which way is up, and no more: Pillow can't write all that it reads."""
    exif = Image.Exif()
    with contextlib.suppress(Exception):  # damage makes Pillow's parser raise many things
        if (orientation := image.getexif().get(ORIENTATION)) in range(1, 9):
            exif[ORIENTATION] = orientation
    return exif
