"""Quick decoding of what nearly everybody sends: plain JPEG and PNG files, 8 bits, RGB.

Pillow takes two to seven times as long for images of 32×32, most of it in Python, and about as long
for larger ones. What is decoded here has the very pixels that Pillow would give; whatever is rare,
damaged or large is left to Pillow, which decides.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import imagecodecs
import simplejpeg

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

SMALL = 512
"""JPEGs of which both sides have so many pixels are left: Pillow need not decode all of them."""

LONG = 65_535
"""Pixels in a row or column of a PNG, at most; a JPEG can't have more. Longer ones are left."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PLAIN = b"\x08\x02"
"""What a PNG's header says of 8 bits and RGB."""
_PNG_LEFT = frozenset((b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"PLTE", b"tRNS"))
"""Chunks that may tell which way is up, or of a palette and transparency."""
_JPEG = b"\xff\xd8\xff"
_JPEG_NOTES = b"\xff\xe1"
"""The marker of EXIF and XMP, which may tell which way is up. It can't be among coded pixels."""
_JPEG_SCAN = b"\xff\xda"
"""The marker that begins a scan, of which a progressive JPEG has some ten; nor can this."""
_JPEG_BARE = frozenset(b"\xff" + bytes([last]) for last in range(0xD0, 0xDA))
"""Markers that no length follows."""

MOST_SCANNED = 1_000_000_000
"""Pixels of a JPEG times its scans, at most: each goes over all pixels, which takes a second for so
many, and may be told in 75 bytes."""
MOST_SEGMENTS = 1000
"""Segments and stray bytes before a JPEG's pixels, at most; a photo has some ten. Pillow takes a µs
or two for each, and more the more EXIF there was before."""


def decode(data: bytes, most_pixels: int) -> NDArray[np.uint8] | None:
    """Decode an image file, or leave it.

    Args:
        data: the bytes of a file.
        most_pixels: images with more (width × height) are left.

    Returns:
        uint8 H×W×3 RGB pixels in [0, 255], or None: let Pillow decide.
    """
    try:
        if data.startswith(_JPEG):
            return _jpeg(data, most_pixels)
        if data.startswith(_PNG):
            return _png(data, most_pixels)
    except Exception:  # damaged or odd: Pillow tells how, or decodes it nevertheless
        return None
    return None


def _jpeg(data: bytes, most_pixels: int) -> NDArray[np.uint8] | None:
    if _JPEG_NOTES in data:
        return None
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    if colours != "YCbCr" or min(height, width) >= SMALL or height * width > most_pixels:
        return None
    if is_scanned_often(data, height * width):
        return None
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data)
    return pixels


def is_scanned_often(data: bytes, pixels: int) -> bool:
    """Tell whether the scans of an image file, if it is a JPEG, go over too many pixels.

    Args:
        data: the bytes of a file.
        pixels: of the image.
    """
    return data.startswith(_JPEG) and data.count(_JPEG_SCAN) * pixels > MOST_SCANNED


def is_long_winded(data: bytes) -> bool:
    """Tell whether an image file, if it is a JPEG, has too much before its pixels."""
    markers = _markers(data) if data.startswith(_JPEG) else iter(())
    return next(islice(markers, MOST_SEGMENTS, None), None) is not None


def _markers(data: bytes) -> Iterator[bytes]:
    """Yield the marker of each segment of a JPEG before its pixels, and each stray byte."""
    at = 2
    while at < len(data):
        marker = data[at : at + 2]
        yield marker
        if marker == _JPEG_SCAN:
            return
        if marker[0] != 0xFF or marker[1:] in (b"\xff", b"\0"):
            at += 1
        elif marker in _JPEG_BARE:
            at += 2
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))


def _png(data: bytes, most_pixels: int) -> NDArray[np.uint8] | None:
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    # Gray, with transparency, or of 16 bits: there, Pillow's conversions are the reference.
    if data[24:26] != _PNG_PLAIN or height * width > most_pixels or max(height, width) > LONG:
        return None
    if not _PNG_LEFT.isdisjoint(_chunks(data)):
        return None
    # Not png_decode, of libpng: it keeps some 60 kB of each file that is damaged.
    pixels: NDArray[np.uint8] = imagecodecs.spng_decode(data)
    return pixels


def _chunks(data: bytes) -> Iterator[bytes]:
    """Yield the kind of each chunk of a PNG file."""
    at, end = len(_PNG), len(data)
    while at < end:
        yield data[at + 4 : at + 8]
        at += 12 + int.from_bytes(data[at : at + 4])
