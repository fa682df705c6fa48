"""What runs the net: one interface, and an engine for each kind of processor.

An engine maps uint8 images to probabilities. Normalisation, the layout of the tensor and softmax
are part of what it runs, so nobody else has to know them. Only the engine that runs is imported:
torch takes 1.5 s and 330 MB, of which OpenVINO needs nothing.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from typing import TYPE_CHECKING, Any, Protocol

from . import weights

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

ENGINES = ("auto", "openvino", "torch")


class EngineError(ValueError):
    """An engine can't be had here; the message says why."""


class Engine(Protocol):
    """Runs a net. Threads may share it."""

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 N×32×32×3 RGB pixels to float32 N×classes probabilities in [0, 1]."""

    def describe(self) -> dict[str, Any]:
        """Tell what runs, as JSON values."""


def for_one(threads: int | None) -> int | None:
    """Return how many threads an image may have that no other came with.

    It is for servers that gather batches: where an image comes alone, another core is idle as well.
    A container's quota of time is not seen here: with one of a single core, they share it.

    Args:
        threads: of a batch.
    """
    return 2 if threads == 1 and len(os.sched_getaffinity(0)) > 1 else threads


def load(
    folder: Path,
    classes: int,
    kind: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    alone: int | None = None,
) -> Engine:
    """Load the engine for the weights that a folder holds.

    Args:
        folder: holds the weights and their lock and, for OpenVINO, the net in 8-bit integers.
        classes: how many outputs the net has.
        kind: `openvino`, `torch`, or `auto`: OpenVINO on a CPU where there is what it needs.
        device: where the net shall run, as torch names it: cpu, cuda, cuda:0.
        threads: on a CPU; the engine's own choice if None.
        alone: threads for an image that is a batch by itself, of OpenVINO; as for others if None.

    Raises:
        EngineError: there is no such engine, or it can't run here.
        WeightsError: a file is missing, or is not that of the lock.
    """
    if kind not in ENGINES:
        raise EngineError(f"there is no engine {kind!r}: choose one of {', '.join(ENGINES)}")
    on_cpu = device.partition(":")[0] == "cpu"
    if kind == "auto":
        has = weights.has_int8(folder) and importlib.util.find_spec("openvino") is not None
        kind = "openvino" if on_cpu and has else "torch"
    if kind == "torch":
        from .engine_torch import CudaEngine, TorchEngine

        state = weights.read(folder)
        net = weights.fit(state, classes)
        if on_cpu:
            return TorchEngine(net, device, threads)
        try:
            return CudaEngine(net, device)
        except RuntimeError as error:  # a net that decides by what it is shown, or is too large
            logger.warning("no CUDA graphs of this net, so it runs without them: %s", error)
            return TorchEngine(net, device)
    if not on_cpu:
        raise EngineError(f"the engine openvino runs on a CPU, not on {device}")
    if importlib.util.find_spec("openvino") is None:
        raise EngineError("the engine openvino needs the package of that name: pip install it")
    # It needs no floats, but explanations do: a folder with others is refused now, not then.
    weights.check(folder)
    from .engine_openvino import OpenVinoEngine

    return OpenVinoEngine(*weights.read_int8(folder), threads, alone)
