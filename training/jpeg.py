"""What JPEG does to images, in batches and on any device: without a file that is written or read.

The steps are those of libjpeg, whose pixels come out the same but for rounding, at a small part of
the time where a GPU trains.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import avg_pool2d, interpolate, pad

EDGE = 8
"""Of the blocks in which frequencies are told apart; colours are halved, so theirs are of 16."""

LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
"""Steps of each frequency at quality 50 (ITU-T T.81, annex K)."""

TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
"""Between RGB and luminance with two colours around 0 (JFIF)."""


def compress(images: torch.Tensor, qualities: torch.Tensor) -> torch.Tensor:
    """Show images as they come out of JPEGs with 4:2:0 subsampling.

    Args:
        images: float N×3×H×W, RGB, whole numbers in [0, 255].
        qualities: N of them, in [1, 100].

    Returns:
        The like of the images.
    """
    height, width = images.shape[2:]
    whole = pad(images, (0, -width % (2 * EDGE), 0, -height % (2 * EDGE)), mode="replicate")
    ycc = _colours(whole, TO_YCC).round()
    luminance = _coarse(ycc[:, :1] - 128, _steps(LUMINANCE, qualities))
    halved = avg_pool2d(ycc[:, 1:], 2).round()
    colours = _coarse(halved, _steps(CHROMINANCE, qualities))
    colours = interpolate(colours, scale_factor=2, mode="bilinear").round()
    rgb = _colours(torch.cat([luminance + 128, colours], dim=1), TO_RGB)
    return rgb.round().clamp(0, 255)[:, :, :height, :width]


def _colours(images: torch.Tensor, matrix: tuple[tuple[float, ...], ...]) -> torch.Tensor:
    return torch.einsum("dc,nchw->ndhw", images.new_tensor(matrix), images)


def _steps(table: tuple[tuple[int, ...], ...], qualities: torch.Tensor) -> torch.Tensor:
    """Return N×1×1×8×1×8 steps: a table at each quality."""
    percent = torch.where(qualities < 50, 5000 // qualities, 200 - 2 * qualities)
    base = torch.tensor(table, device=qualities.device)
    steps = ((base * percent[:, None, None] + 50) // 100).clamp(1, 255)
    return steps[:, None, None, :, None, :]


def _coarse(planes: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Round the frequencies of each block of N×C×H×W planes, in [-128, 127], to whole steps."""
    cosines = _cosines().to(planes)
    blocks = planes.unflatten(3, (-1, EDGE)).unflatten(2, (-1, EDGE))
    found = torch.einsum("ui,vj,ncyixj->ncyuxv", cosines, cosines, blocks)
    coarse = (found / steps).round() * steps
    back = torch.einsum("ui,vj,ncyuxv->ncyixj", cosines, cosines, coarse)
    return back.round().clamp(-128, 127).flatten(4, 5).flatten(2, 3)


def _cosines() -> torch.Tensor:
    """Return the discrete cosine transform of EDGE values: frequencies by places."""
    place, frequency = torch.arange(EDGE), torch.arange(EDGE)[:, None]
    waves = torch.cos(math.pi * (2 * place + 1) * frequency / (2 * EDGE)) * math.sqrt(2 / EDGE)
    waves[0] /= math.sqrt(2)
    return waves
