"""How pictures arrive: the same images as photos would be sent, through the preprocessing."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from model.image import decode, resize

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

ENLARGED = (512, 512)


def encode(pixels: NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    """Encode uint8 H×W×3 pixels as a file of a format that PIL can write."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def as_jpeg(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Compress uint8 H×W×3 pixels as JPEG with 4:2:0 subsampling, as cameras and the web do."""
    return decode(encode(pixels, "JPEG", quality=75, subsampling="4:2:0"))


def enlarged(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Enlarge uint8 32×32×3 pixels to 512×512, bicubic, and let the preprocessing shrink them."""
    return resize(Image.fromarray(pixels).resize(ENLARGED, Image.Resampling.BICUBIC))


ARRIVALS: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "as JPEG of quality 75, 4:2:0": as_jpeg,
    "enlarged to 512×512": enlarged,
}


def arrive(pixels: NDArray[np.uint8], how: str) -> NDArray[np.uint8]:
    """Let images, uint8 N×32×32×3, arrive in one of the ways of ARRIVALS."""
    return np.stack([ARRIVALS[how](image) for image in tqdm(pixels, desc=how, unit=" images")])
