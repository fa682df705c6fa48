"""Random variations of training images, in batches: float N×3×H×W pixels in [0, 255]."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from . import jpeg

SHIFT = 4
"""Images are shifted by up to so many pixels each way; what moves in is a reflection."""
QUALITIES = (50, 95)
"""The range of qualities of JPEGs."""
BLANK = 127.5
"""What a square is blanked with: about 0 when it is normalised."""


def flip(images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Mirror those of the images, left to right, for which the bool tensor N is True."""
    return torch.where(which.view(-1, 1, 1, 1), images.flip(3), images)


def shift(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Crop each of the images at random from its reflect-padded self."""
    count, _, height, width = images.shape
    padded = pad(images, (SHIFT,) * 4, mode="reflect").permute(0, 2, 3, 1)
    top, left = torch.randint(2 * SHIFT + 1, (2, count, 1, 1), generator=generator)
    rows = (top + torch.arange(height)[None, :, None]).to(images.device)
    columns = (left + torch.arange(width)[None, None, :]).to(images.device)
    index = torch.arange(count, device=images.device)[:, None, None]
    return padded[index, rows, columns].permute(0, 3, 1, 2)


def blend(share: float, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw, N×1, how much of each of so many images is another's: in [0, 1], of a share of them."""
    weights, chance = torch.rand(2, count, 1, generator=generator)
    drawn: torch.Tensor = weights * (chance < share)
    return drawn


def mix(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Blend each of N rows of any shape with its opposite one, by weights, N×1, of that one."""
    shaped = weights.view(-1, *[1] * (rows.ndim - 1))
    mixed: torch.Tensor = torch.lerp(rows, rows.flip(0), shaped)
    return mixed


def cut(images: torch.Tensor, edge: int, generator: torch.Generator) -> torch.Tensor:
    """Blank a square of each of the images; its centre lies anywhere in it."""
    count, _, height, width = images.shape
    rows, columns = (
        (torch.arange(size) - torch.randint(size, (count, 1), generator=generator) + edge // 2).to(
            images.device
        )
        for size in (height, width)
    )
    square = _inside(rows, edge)[:, None, :, None] & _inside(columns, edge)[:, None, None, :]
    return images.masked_fill(square, BLANK)


def compress(images: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Show a share of the images, whole numbers, as JPEGs of random quality."""
    low, high = QUALITIES
    chance = torch.rand(len(images), generator=generator)
    drawn = torch.randint(low, high + 1, (len(images),), generator=generator)
    which = (chance < share).nonzero().flatten().to(images.device)
    shown = images.clone()
    if len(which):
        shown[which] = jpeg.compress(images[which], drawn.to(images.device)[which])
    return shown


def _inside(positions: torch.Tensor, edge: int) -> torch.Tensor:
    return (positions >= 0) & (positions < edge)
