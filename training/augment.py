"""Random variations of training images, in batches."""

from __future__ import annotations

import torch
from torchvision.io import decode_jpeg, encode_jpeg

SHIFT = 4
"""Images are shifted by up to so many pixels each way."""

QUALITIES = (50, 95)
"""The range of qualities of JPEGs."""


def compress(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Compress each of the uint8 N×H×W×3 images as a JPEG (4:2:0) of random quality."""
    low, high = QUALITIES
    qualities = torch.randint(low, high + 1, (len(images),), generator=generator).tolist()
    pairs = zip(images.permute(0, 3, 1, 2).cpu().contiguous(), qualities, strict=True)
    jpegs = [decode_jpeg(encode_jpeg(image, quality)) for image, quality in pairs]
    return torch.stack(jpegs).permute(0, 2, 3, 1).to(images.device)


def shift(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move each of the N×H×W×C images at random; what moves in is its reflection."""
    count, height, width, _ = images.shape
    down, right = torch.randint(-SHIFT, SHIFT + 1, (2, count, 1), generator=generator)
    rows = _reflect(torch.arange(height) + down, height).to(images.device)
    columns = _reflect(torch.arange(width) + right, width).to(images.device)
    index = torch.arange(count, device=images.device)[:, None, None]
    return images[index, rows[:, :, None], columns[:, None, :]]


def _reflect(positions: torch.Tensor, size: int) -> torch.Tensor:
    """Fold positions that lie outside [0, size) back into it, at the middle of the edge pixels."""
    return size - 1 - (size - 1 - positions.abs()).abs()


def flip(images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Mirror those of the N×H×W×C images, left to right, for which the bool tensor N is True."""
    return torch.where(which.view(-1, 1, 1, 1), images.flip(2), images)


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
