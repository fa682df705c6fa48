"""The engines of torch: float32 on a CPU, float16 on CUDA."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from . import image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .net import Net


LARGEST = 64
"""Images that are run at once: what lies between two layers of a thousand would take gigabytes."""
SMALL = 32 * 32
"""Images of so few pixels run on a GPU in batches of up to 256."""
SIZES = (1, 2, 4, 8, 16, 32, LARGEST, *((128, 256) if math.prod(image.SIZE) <= SMALL else ()))
"""Batches for which there is a CUDA graph; others are filled up to the next."""


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
    """Torch, operation by operation: what others are compared with.

    Args:
        net: in evaluation mode.
        device: where it runs.
        threads: on a CPU; torch's own choice if None. They are the whole process's.
    """

    def __init__(self, net: Net, device: str = "cpu", threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = torch.device(device)
        self.pipeline = Pipeline(net).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 N×32×32×3 RGB pixels to float32 N×classes probabilities in [0, 1]."""
        # torch takes no array that is turned, as from BGR. And a copy: images of PIL are read-only.
        parts = torch.tensor(np.ascontiguousarray(pixels)).split(LARGEST)
        rows = torch.cat([self.run(part.to(self.device)).cpu() for part in parts])
        result: NDArray[np.float32] = rows.numpy()
        return result

    def run(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map pixels, as above and on the device, to probabilities there."""
        on_cuda = self.device.type == "cuda"
        # Nothing is cached: a graph must not know tensors that go when the context ends.
        with torch.autocast("cuda", torch.float16, enabled=on_cuda, cache_enabled=False):
            rows: torch.Tensor = self.pipeline(pixels)
        return rows

    def describe(self) -> dict[str, Any]:
        """Tell what runs."""
        return {
            "engine": "torch",
            "precision": "float16" if self.device.type == "cuda" else "float32",
            "device": str(self.device),
            "threads": torch.get_num_threads(),
        }


class CudaEngine(TorchEngine):
    """Torch on CUDA, by graphs: a batch is one launch, and not one for each operation.

    Args:
        net: in evaluation mode, without decisions that depend on what it is shown.
        device: where it runs: cuda, cuda:0.

    Raises:
        RuntimeError: the net makes no graph, or takes more memory than there is.
    """

    def __init__(self, net: Net, device: str) -> None:
        super().__init__(net, device)
        largest = (SIZES[-1], *image.SHAPE)
        self.sent = torch.empty(largest, dtype=torch.uint8, pin_memory=True)
        self.pixels = torch.zeros(largest, dtype=torch.uint8, device=self.device)
        self.lock = threading.Lock()  # a graph has one input and one output
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(self.device)
        with torch.inference_mode(), torch.cuda.device(self.device), torch.cuda.stream(stream):
            # The largest first: the others find room in what that one takes.
            self.graphs = {size: self._capture(size, pool, stream) for size in reversed(SIZES)}

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 N×32×32×3 RGB pixels to float32 N×classes probabilities in [0, 1]."""
        parts = [pixels[i : i + SIZES[-1]] for i in range(0, max(1, len(pixels)), SIZES[-1])]
        with self.lock, torch.inference_mode(), torch.cuda.device(self.device):
            return np.concatenate([self._replay(part) for part in parts])

    def describe(self) -> dict[str, Any]:
        """Tell what runs."""
        return {**super().describe(), "graphs": list(SIZES)}

    def _replay(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        count = len(pixels)
        graph, rows = self.graphs[min(size for size in SIZES if size >= count)]
        self.sent[:count].numpy()[:] = pixels
        self.pixels[:count].copy_(self.sent[:count], non_blocking=True)
        graph.replay()
        result: NDArray[np.float32] = rows[:count].cpu().numpy()  # waits for it
        return result

    def _capture(
        self, size: int, pool: Any, stream: torch.cuda.Stream
    ) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """Return the graph of a batch, and where it leaves its probabilities."""
        pixels, graph = self.pixels[:size], torch.cuda.CUDAGraph()
        for _ in range(3):  # first as it is: cuDNN chooses how to compute
            self.run(pixels)
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            rows = self.run(pixels)
        return graph, rows
