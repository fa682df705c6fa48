"""The net in 8-bit integers, for OpenVINO: made from the float weights and some training images."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from model.engine import Pipeline
from model.weights import INT8

if TYPE_CHECKING:
    from model import Net

    from .data import Images

CALIBRATION = 1000
"""Training images from which the ranges of activations are read."""
BATCH = 100
MOST_LOST = 0.002
"""The accuracy, in [0, 1], that 8-bit integers may cost on held-out images."""
LEAST_AGREEMENT = 0.99
"""The share of held-out images to which both must give the same label."""


def quantise(net: Net, images: Images, seed: int = 0) -> tuple[bytes, bytes]:
    """Return OpenVINO's graph (.xml) and constants (.bin) of a net in 8-bit integers.

    Args:
        net: in evaluation mode, on the CPU.
        images: those it was trained on.
        seed: draws which of them calibrate it.
    """
    os.environ["CI"] = "true"  # else nncf might ask whether it may send usage data to Intel
    import nncf  # here, for both take seconds
    import openvino

    nncf.set_log_level(logging.ERROR)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images.targets), generator=generator)[:CALIBRATION]
    batches = [batch.numpy() for batch in images.pixels[chosen].split(BATCH)]
    with warnings.catch_warnings():  # OpenVINO traces, which torch would have end
        warnings.simplefilter("ignore", DeprecationWarning)
        graph = openvino.convert_model(
            Pipeline(net), input=[-1, 32, 32, 3], example_input=images.pixels[:2]
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


def costs_too_much(lost: float, agreement: float, count: int) -> bool:
    """Tell whether 8-bit integers cost more than is tolerated; of few images, one may differ.

    Args:
        lost: accuracy in floats less that in integers, in [-1, 1].
        agreement: the share of images, in [0, 1], that both label alike.
        count: how many images these were.
    """
    one = 1 / count
    return lost > max(MOST_LOST, one) or agreement < min(LEAST_AGREEMENT, 1 - one)
