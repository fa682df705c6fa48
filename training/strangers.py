"""Images of none of the classes, drawn: what does a classifier say of what it can't know?"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from model.image import resize

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SIZE = 64  # pixels of the edge; the preprocessing shrinks them


def noise(chance: np.random.Generator) -> Image.Image:
    """Draw pixels that have nothing to do with each other."""
    return Image.fromarray(chance.integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8))


def flat(chance: np.random.Generator) -> Image.Image:
    """Draw one colour."""
    return Image.new("RGB", (SIZE, SIZE), _colour(chance))


def letter(chance: np.random.Generator) -> Image.Image:
    """Draw a letter or a digit in some colour on some other."""
    image = flat(chance)
    character = str(chance.choice(list(string.ascii_letters + string.digits)))
    font = ImageFont.load_default(size=int(chance.integers(36, 60)))
    middle = (SIZE // 2, SIZE // 2)
    ImageDraw.Draw(image).text(middle, character, _colour(chance), font, anchor="mm")
    return image


STRANGERS: dict[str, Callable[[np.random.Generator], Image.Image]] = {
    "noise": noise,
    "one colour": flat,
    "letters and digits": letter,
}


def draw(kind: str, count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Draw so many images of a kind: uint8 N×32×32×3."""
    chance = np.random.default_rng(seed)
    return np.stack([resize(STRANGERS[kind](chance)) for _ in range(count)])


def _colour(chance: np.random.Generator) -> tuple[int, ...]:
    return tuple(chance.integers(256, size=3).tolist())
