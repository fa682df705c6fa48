"""What runs the net: one interface, and an engine for each kind of processor.

An engine maps uint8 images to probabilities. Normalisation, the layout of the tensor and softmax
are part of what it runs, so nobody else has to know them.
"""

from __future__ import annotations

import functools
import importlib.util
import threading
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from . import image, weights

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from .net import Net

ENGINES = ("auto", "openvino", "torch")
SIZES = (*range(1, 17), 32, 64)
"""Batch sizes that OpenVINO runs: it compiles anew for each, which takes 12 ms and keeps 2 MB."""


class EngineError(ValueError):
    """An engine can't be had here; the message says why."""


class Engine(Protocol):
    """Runs a net. Threads may share it."""

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 N×32×32×3 RGB pixels to float32 N×classes probabilities in [0, 1]."""

    def describe(self) -> dict[str, Any]:
        """Tell what runs, as JSON values."""


class Pipeline(nn.Module):
    """The net with all that an engine does: uint8 N×32×32×3 in, float32 N×classes out."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map images to probabilities."""
        probabilities: torch.Tensor = self.net(image.normalise(pixels)).float().softmax(dim=1)
        return probabilities


class TorchEngine:
    """Torch: float32 on a CPU, float16 on CUDA; what others are compared with.

    Args:
        net: in evaluation mode.
        device: where it runs.
        threads: on a CPU; torch's own choice if None. They are the whole process's.
    """

    def __init__(
        self, net: Net, device: torch.device | str = "cpu", threads: int | None = None
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = torch.device(device)
        self.pipeline = Pipeline(net).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 N×32×32×3 RGB pixels to float32 N×classes probabilities in [0, 1]."""
        batch = torch.tensor(pixels).to(self.device)  # a copy: images of PIL are read-only
        with torch.autocast("cuda", torch.float16, enabled=self.device.type == "cuda"):
            result: NDArray[np.float32] = self.pipeline(batch).cpu().numpy()
        return result

    def describe(self) -> dict[str, Any]:
        """Tell what runs."""
        return {
            "engine": "torch",
            "precision": "float16" if self.device.type == "cuda" else "float32",
            "device": str(self.device),
            "threads": torch.get_num_threads(),
        }


@functools.cache
def _core() -> Any:
    """Return OpenVINO's core, one for the process and for ever.

    Where a CPU has AMX, each core sets a stack for signals, and puts back the one before when it
    goes, even if that has gone by then: the next Ctrl-C would be a segmentation fault.
    """
    import openvino

    return openvino.Core()


def parts(pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Split a batch, uint8 N×32×32×3, into batches of SIZES, each as large as can be."""
    while len(pixels):
        size = max(size for size in SIZES if size <= len(pixels))
        yield pixels[:size]
        pixels = pixels[size:]


class OpenVinoEngine:
    """OpenVINO, in 8-bit integers, on a CPU; batches of other sizes than SIZES run in parts.

    Args:
        graph: the bytes of the .xml file.
        constants: the bytes of the .bin file.
        threads: OpenVINO's own choice if None.
    """

    def __init__(self, graph: bytes, constants: bytes, threads: int | None = None) -> None:
        import openvino

        core = _core()
        model = core.read_model(graph, openvino.Tensor(np.frombuffer(constants, np.uint8)))
        # Without pinning: each worker would pin its threads to the same first cores.
        options = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        self.compiled = core.compile_model(model, "CPU", options)
        classes = self.compiled.output(0).get_partial_shape()[1].get_length()
        self.none = np.empty((0, classes), np.float32)  # OpenVINO answers it with what was before
        self.local = threading.local()  # a request holds one batch: two threads must not share it

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 N×32×32×3 RGB pixels to float32 N×classes probabilities in [0, 1]."""
        if not hasattr(self.local, "request"):
            self.local.request = self.compiled.create_infer_request()
        run = functools.partial(self.local.request.infer, share_inputs=True)
        results = [run([part])[0] for part in parts(pixels)]
        return np.concatenate([self.none, *results])

    def describe(self) -> dict[str, Any]:
        """Tell what runs."""
        return {
            "engine": "openvino",
            "precision": "int8",
            "device": "cpu",
            "threads": self.compiled.get_property("INFERENCE_NUM_THREADS"),
        }


def load(
    folder: Path,
    classes: int,
    kind: str = "auto",
    device: torch.device | str = "cpu",
    threads: int | None = None,
) -> Engine:
    """Load the engine for the weights that a folder holds.

    Args:
        folder: holds the weights and their lock and, for OpenVINO, the net in 8-bit integers.
        classes: how many outputs the net has.
        kind: `openvino`, `torch`, or `auto`: OpenVINO on a CPU where there is what it needs.
        device: where the net shall run.
        threads: on a CPU; the engine's own choice if None.

    Raises:
        EngineError: there is no such engine, or it can't run here.
        WeightsError: a file is missing, or is not that of the lock.
    """
    if kind not in ENGINES:
        raise EngineError(f"there is no engine {kind!r}: choose one of {', '.join(ENGINES)}")
    on_cpu = torch.device(device).type == "cpu"
    state = weights.read(folder / weights.WEIGHTS, folder / weights.LOCK)
    if kind == "auto":
        has = weights.has_int8(folder) and importlib.util.find_spec("openvino") is not None
        kind = "openvino" if on_cpu and has else "torch"
    if kind == "torch":
        return TorchEngine(weights.fit(state, classes), device, threads if on_cpu else None)
    if not on_cpu:
        raise EngineError(f"the engine openvino runs on a CPU, not on {device}")
    return OpenVinoEngine(*weights.read_int8(folder), threads)
