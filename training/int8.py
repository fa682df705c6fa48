"""The net in 8-bit integers, for OpenVINO: made from the float weights and some training images."""

from __future__ import annotations

import copy
import logging
import os
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from model.engine_torch import Pipeline
from model.image import SHAPE
from model.weights import INT8

from .slim import leave_out, show

if TYPE_CHECKING:
    from collections.abc import Iterable

    from model.net import Net

    from .data import Images

CALIBRATION = 1000
"""Training images from which the ranges of activations are read."""
BATCH = 100
LEAST = 1e-6
"""A range below counts as this: of a channel that is always 0, or that nothing reads."""
MOST_LOST = 0.002
"""The accuracy, in [0, 1], that 8-bit integers may cost on held-out images."""
LEAST_AGREEMENT = 0.99
"""The share of held-out images to which both must give the same label."""


def quantise(net: Net, images: Images, seed: int = 0, *, slim: bool = True) -> tuple[bytes, bytes]:
    """Return OpenVINO's graph (.xml) and constants (.bin) of a net in 8-bit integers.

    Args:
        net: in evaluation mode, on the CPU.
        images: those it was trained on.
        seed: draws which of them calibrate it.
        slim: whether channels are left out that others can stand in for.
    """
    os.environ["CI"] = "true"  # else nncf might ask whether it may send usage data to Intel
    import nncf  # here, for both take seconds
    import openvino

    logging.getLogger("nncf").setLevel(logging.ERROR)  # not of its handlers: a host may share them
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images.targets), generator=generator)[:CALIBRATION]
    pixels = images.pixels[chosen].split(BATCH)
    batches = [batch.numpy() for batch in pixels]
    if hasattr(net, "CHANNELS"):  # else there is nothing to look for in all these images
        net = copy.deepcopy(net)
        if slim:
            leave_out(net, pixels)
        equalise(net, pixels)
    with warnings.catch_warnings():  # OpenVINO traces, which torch would have end
        warnings.simplefilter("ignore", DeprecationWarning)
        graph = openvino.convert_model(
            Pipeline(net), input=[-1, *SHAPE], example_input=images.pixels[:2]
        )
    quantised = nncf.quantize(
        graph,
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.MIXED,  # activations after a batch norm are not symmetric
        subset_size=len(batches),
    )
    with tempfile.TemporaryDirectory(prefix="int8-") as folder:
        path = Path(folder) / INT8[0]
        openvino.save_model(quantised, path, compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()


@torch.no_grad()
def equalise(net: Net, batches: Iterable[torch.Tensor]) -> None:
    """Make the ranges of a net's channels more alike; it answers the same.

    A tensor of activations has one scale in 8-bit integers. A channel that is almost always 0 is
    blown up by its batch norm, and where one has a wide range, little is left for the others. So
    each channel is divided, behind its norm, by some of its range, and the weights that read it
    are multiplied by as much, as in SmoothQuant (Xiao et al., 2022).

    Args:
        net: in evaluation mode, on the CPU; it is changed.
        batches: images, uint8 N×32×32×3, from which the ranges are read.
    """
    ranges = _ranges(net, batches)
    for _, name, reader in net.CHANNELS:
        norm, weights = getattr(net, name), getattr(net, reader).weight
        by_channel = weights.view(len(weights), len(norm.weight), -1)  # a view: it is written to
        scale = (ranges[name] / by_channel.abs().amax((0, 2)).clamp_min(LEAST)).sqrt()
        scale = scale.clamp_min(LEAST)
        norm.weight.div_(scale)
        norm.bias.div_(scale)
        by_channel.mul_(scale.view(1, -1, 1))


def _ranges(net: Net, batches: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the largest value, without its sign, of each channel behind each norm."""
    ranges: dict[str, torch.Tensor] = {}

    def note(name: str, _: object, __: object, output: torch.Tensor) -> None:
        found = output.abs().transpose(0, 1).flatten(1).amax(1)
        ranges[name] = torch.maximum(ranges.get(name, found), found)

    norms = [norm for _, norm, _ in net.CHANNELS]
    hooks = [getattr(net, norm).register_forward_hook(partial(note, norm)) for norm in norms]
    show(net, batches, hooks)
    return ranges


def costs_too_much(lost: int, differing: int, count: int) -> bool:
    """Tell whether 8-bit integers cost more than is tolerated; of few images, one may differ.

    Args:
        lost: images that are right in floats, less those that are in integers.
        differing: images that get another label.
        count: how many images these were.
    """
    return lost > max(MOST_LOST * count, 1) or differing > max((1 - LEAST_AGREEMENT) * count, 1)
