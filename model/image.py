"""From the bytes of an image file to what the net takes: the one definition of preprocessing.

Training, the handler and the tests all use it.
"""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from . import codecs

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

SIZE = (32, 32)
"""Width and height, in pixels, of the images that the net takes."""
SHAPE = (SIZE[1], SIZE[0], 3)
"""The same as the shape of an array: height, width and channels."""
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
"""Mean and standard deviation of each channel in normalisation, for pixels scaled to [0, 1]."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are decoded. Pillow knows more; each is a door that nobody here needs."""
MAX_PIXELS = 50_000_000
"""Images with more pixels (width × height) are refused before decoding."""
MAX_EDGE = 100_000
"""Images of more pixels in a row or column, too: to resize one takes 32 bytes for each of them."""
REDUCED = (max(codecs.SMALL // 2, 2 * max(SIZE)),) * 2
"""Large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, but not below this width and height.

Nor are large images with transparency made smaller than that before they are blended."""

_8_BITS = np.round(np.arange(65536) / 257).astype(np.uint8)
"""What becomes of each 16-bit value: a table, for floats would take eight times the memory."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image of each EXIF orientation upright."""

_BITS, _ZERO, _WHITE = 258, 262, 0
"""TIFF's tags of how many bits a value has and of what 0 is, and that it is white."""
_PNG_GRAY = 0
"""What a PNG's header says of gray without opacity."""

_WANTED = "send one JPEG, PNG, WebP, GIF, BMP or TIFF file"


class ImageError(ValueError):
    """The input is no image that can be classified; the message says why and what to send."""


def decode(data: bytes) -> NDArray[np.uint8]:
    """Decode an image file and bring it to the net's size.

    EXIF orientation is honoured; of an animation the first frame counts; transparent pixels
    are blended with white; 16-bit gray is scaled to 8 bits. Of a large JPEG only the coarser
    frequencies are decoded, which changes the pixels of a photo by 0.6 of 255 on average, single
    ones by up to 11, and takes a quarter of the time; a large image with transparency is averaged
    first, which changes them by no more.

    Args:
        data: the bytes of a JPEG, PNG, WebP, GIF, BMP or TIFF file.

    Returns:
        uint8 32×32×3 RGB pixels in [0, 255].

    Raises:
        ImageError: the bytes are empty, no such image, damaged, more than MAX_PIXELS or MAX_EDGE,
            gray of an unknown scale, or a JPEG that takes longer than any photo.
    """
    if not data:
        raise ImageError(f"the request holds no image: {_WANTED}")
    pixels = codecs.decode(data, MAX_PIXELS)
    if pixels is not None:
        return pixels if pixels.shape == SHAPE else np.asarray(Image.fromarray(pixels).resize(SIZE))
    image = _open(data)
    try:
        image.draft(None, REDUCED)  # does nothing to what is no JPEG
        return resize(image)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(
            f"the {image.format} image is damaged ({error}): send it again, whole"
        ) from error


def _open(data: bytes) -> ImageFile:
    """Open an image file, of which no pixel is decoded yet; or raise ImageError.

    What would take longer than the largest photo is refused here, however small the file is.
    """
    if codecs.is_long_winded(data):
        raise ImageError(
            f"the JPEG has over {codecs.MOST_SEGMENTS:,} segments before its pixels: save it anew"
        )
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ImageError(f"the image has over {MAX_PIXELS:,} pixels: send a smaller one") from None
    except Exception as error:  # Pillow's parsers raise whatever the damage makes of them
        raise ImageError(f"not an image that can be read: {_WANTED}") from error
    width, height = image.size
    if width * height > MAX_PIXELS or max(image.size) > MAX_EDGE:
        raise ImageError(
            f"the image has {width}×{height} pixels, more than {MAX_PIXELS:,}, or than "
            f"{MAX_EDGE:,} in a row or column: send a smaller one"
        )
    if codecs.is_scanned_often(data, width * height):
        raise ImageError("the JPEG has too many scans for its size: save it anew, as a plain JPEG")
    if isinstance(image, TiffImageFile):
        _check_gray(image)
    elif isinstance(image, PngImageFile):
        _scale_transparency(image, *data[24:26])
    return image


def _check_gray(image: TiffImageFile) -> None:
    """Fail where Pillow gives gray of more than 8 bits another scale than that of 16 bits."""
    bits, zero = image.tag_v2.get(_BITS), image.tag_v2.get(_ZERO)
    if image.mode.startswith("I;16") and (bits != (16,) or zero == _WHITE):
        raise ImageError(
            "the gray TIFF has more than 8 bits but not 16, or its 0 is white: save it with 16 "
            "bits, 0 as black"
        )


def _scale_transparency(image: PngImageFile, bits: int, colours: int) -> None:
    """Bring the value that stands for transparency to 8 bits, as Pillow brings the pixels."""
    value = image.info.get("transparency")
    if isinstance(value, int) and colours == _PNG_GRAY and bits in (2, 4):
        image.info["transparency"] = value * 255 // (2**bits - 1)
    elif isinstance(value, tuple) and bits == 16:
        image.info["transparency"] = tuple(one >> 8 for one in value)


def resize(image: Image.Image) -> NDArray[np.uint8]:
    """Bring a PIL image, as it is opened from a file, to uint8 32×32×3 RGB (see `decode`)."""
    return np.asarray(to_rgb(_upright(image)).resize(SIZE))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a PIL image of any mode to RGB; transparency is blended with white.

    Raises:
        ImageError: pixels whose scale is unknown (integers of 32 bits or with a sign, and floats).
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I;16"):
        return _from_16_bit(image).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(
            "pixels of 32 bits, or of 16 with a sign, have no known scale: send 8 or 16 bits a "
            "channel"
        )
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Blend with white; first a large image is made smaller, which saves half of time and memory.

    That is no other picture: both are sums of pixels, weighted by how opaque they are.
    """
    factor = max(1, min(image.size) // REDUCED[0])
    smaller = (image.width // factor, image.height // factor)
    image = image.resize(smaller, Image.Resampling.BOX, reducing_gap=3)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says; damaged EXIF says nothing.

    Pillow's own `exif_transpose` also writes the EXIF anew, and fails on what it can't write.
    """
    image.load()  # first: Pillow turns a TIFF by itself when it is decoded
    try:
        orientation = image.getexif().get(0x0112)
    except Exception:  # damage makes Pillow's parser raise many things, and none of them matters
        return image
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Scale gray pixels in [0, 65535] to 8 bits (Pillow's own conversion would clip them)."""
    pixels = np.asarray(image)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # the value that stands for it
        pixels = np.where(pixels == transparent, 65535, pixels)
    return Image.fromarray(_8_BITS[pixels])


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Scale uint8 N×32×32×3 pixels to what the net takes: float N×3×32×32 in [-1, 1]."""
    mean, std = _statistics(pixels.device)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)


@functools.cache
def _statistics(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return MEAN and STD on a device: once, for a CUDA graph must not wait for a copy."""
    import torch  # here, for who decodes needs none of it

    with torch.inference_mode(False):  # in training, too
        return torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)
