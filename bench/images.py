"""What is sent: real images, in the forms in which the servers want them."""

from __future__ import annotations

import base64
import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from training import cifar10
from training.arrivals import encode

if TYPE_CHECKING:
    from pathlib import Path

SMALL = 200
PHOTOS = 8
PHOTO_SIZE = (1600, 1200)

CONTENT_TYPES = {
    "raw": "application/octet-stream",
    "base64": "application/json",
    "base64 list": "application/json",
}
"""How a body holds an image, and what its content type is then."""


def small() -> list[bytes]:
    """Return 200 of CIFAR-10's test images, as PNG."""
    images = cifar10.load(train=False)
    return [encode(pixels, "PNG") for pixels in images.pixels[:SMALL].numpy()]


def photos(sample: Path) -> list[bytes]:
    """Return parts of a photo, each enlarged to 1600×1200, as JPEG of quality 90."""
    with Image.open(sample) as image:
        photo = image.convert("RGB")
    parts = [
        photo.crop((i * 5, i * 3, photo.width - i * 4, photo.height - i * 2)).resize(PHOTO_SIZE)
        for i in range(PHOTOS)
    ]
    return [encode(np.asarray(part), "JPEG", quality=90) for part in parts]


def body(image: bytes, encoding: str) -> bytes:
    """Return a request's body that holds an image."""
    if encoding == "raw":
        return image
    text = base64.b64encode(image).decode()
    told = {"images": [text]} if encoding == "base64 list" else {"image_data": text}
    return json.dumps(told).encode()


def write(images: list[bytes], folder: Path) -> dict[str, Path]:
    """Write bodies to a folder for each encoding; return these folders, which hold nothing else."""
    folders = {encoding: folder / encoding for encoding in CONTENT_TYPES}
    for encoding, place in folders.items():
        if place.exists():
            shutil.rmtree(place)  # bodies of an earlier run, perhaps of more images
        place.mkdir(parents=True)
        for index, image in enumerate(images):
            (place / f"{index:03}").write_bytes(body(image, encoding))
    return folders
