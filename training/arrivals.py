"""How pictures arrive: the same images as photos would be sent, through the preprocessing."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from model.image import decode, resize

from .data import Images

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

ENLARGED = (512, 512)


def as_jpeg(pixels: NDArray[np.uint8], quality: int = 75) -> NDArray[np.uint8]:
    """Compress uint8 H×W×3 pixels as JPEG with 4:2:0 subsampling, as cameras and the web do."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return decode(buffer.getvalue())


def enlarged(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Enlarge uint8 32×32×3 pixels to 512×512, bicubic, and let the preprocessing shrink them."""
    return resize(Image.fromarray(pixels).resize(ENLARGED, Image.Resampling.BICUBIC))


ARRIVALS: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "as JPEG of quality 75, 4:2:0": as_jpeg,
    "enlarged to 512×512": enlarged,
}


def arrive(images: Images, how: str) -> Images:
    """Let all images arrive in one of the ways of ARRIVALS."""
    changed = [ARRIVALS[how](p) for p in tqdm(images.pixels.numpy(), desc=how, unit=" images")]
    return Images(torch.from_numpy(np.stack(changed)), images.targets)
