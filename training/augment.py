"""Random variations of training images, in batches."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import pad

from .arrivals import as_jpeg

SHIFT = 4
"""Images are shifted by up to so many pixels each way; what moves in is a reflection."""

QUALITIES = (50, 95)
"""The range of qualities of JPEGs."""


def compress(
    pixels: torch.Tensor, generator: torch.Generator, qualities: tuple[int, int] = QUALITIES
) -> torch.Tensor:
    """Compress each of the uint8 N×H×W×3 images, on the CPU, as a JPEG of random quality."""
    low, high = qualities
    drawn = torch.randint(low, high + 1, (len(pixels),), generator=generator).tolist()
    pairs = zip(pixels.numpy(), drawn, strict=True)
    return torch.from_numpy(np.stack([as_jpeg(image, quality) for image, quality in pairs]))


def shift(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Crop each of the float N×C×H×W images at random from its reflect-padded self."""
    count, _, height, width = images.shape
    padded = pad(images, (SHIFT,) * 4, mode="reflect").permute(0, 2, 3, 1)
    top, left = torch.randint(2 * SHIFT + 1, (2, count, 1, 1), generator=generator)
    rows = (top + torch.arange(height)[None, :, None]).to(images.device)
    columns = (left + torch.arange(width)[None, None, :]).to(images.device)
    index = torch.arange(count, device=images.device)[:, None, None]
    return padded[index, rows, columns].permute(0, 3, 1, 2)


def flip(images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Mirror those of the N×C×H×W images, left to right, for which the bool tensor N is True."""
    return torch.where(which.view(-1, 1, 1, 1), images.flip(3), images)


def cut(images: torch.Tensor, edge: int, generator: torch.Generator) -> torch.Tensor:
    """Blank a square of each of the float N×C×H×W images; its centre lies anywhere in it."""
    count, _, height, width = images.shape
    rows, columns = (
        (torch.arange(size) - torch.randint(size, (count, 1), generator=generator) + edge // 2).to(
            images.device
        )
        for size in (height, width)
    )
    square = _inside(rows, edge)[:, None, :, None] & _inside(columns, edge)[:, None, None, :]
    return images.masked_fill(square, 0)


def _inside(positions: torch.Tensor, edge: int) -> torch.Tensor:
    return (positions >= 0) & (positions < edge)
