"""Images that the tests make: encoded in every format, and damaged."""

from __future__ import annotations

import io
import random
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLE = Path("samples/cat.jpg")


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Encode a PIL image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def sample() -> Image.Image:
    """Return the shipped photo: RGB 451×300."""
    return Image.open(SAMPLE).convert("RGB")


def crops(count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield PNG files of seeded random parts of the shipped photo, 16 pixels or more a side."""
    draw = random.Random(seed)
    photo = sample()
    for _ in range(count):
        width, height = draw.randint(16, photo.width), draw.randint(16, photo.height)
        left = draw.randint(0, photo.width - width)
        top = draw.randint(0, photo.height - height)
        yield encode(photo.crop((left, top, left + width, top + height)))


def chunk(kind: bytes, data: bytes) -> bytes:
    """Lay out a chunk of a PNG."""
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def rescanned(image: Image.Image, times: int) -> bytes:
    """Encode a progressive JPEG whose last scan is there so many times more."""
    data = encode(image, "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * times + data[-2:]
