"""The engine of torch: float32 on a CPU, float16 on CUDA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from . import image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .net import Net


LARGEST = 64
"""Images that are run at once: what lies between two layers of a thousand would take gigabytes."""


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

    def __init__(self, net: Net, device: str = "cpu", threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = torch.device(device)
        self.pipeline = Pipeline(net).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 N×32×32×3 RGB pixels to float32 N×classes probabilities in [0, 1]."""
        parts = torch.tensor(pixels).split(LARGEST)  # a copy: images of PIL are read-only
        with torch.autocast("cuda", torch.float16, enabled=self.device.type == "cuda"):
            rows = torch.cat([self.pipeline(part.to(self.device)).cpu() for part in parts])
        result: NDArray[np.float32] = rows.numpy()
        return result

    def describe(self) -> dict[str, Any]:
        """Tell what runs."""
        return {
            "engine": "torch",
            "precision": "float16" if self.device.type == "cuda" else "float32",
            "device": str(self.device),
            "threads": torch.get_num_threads(),
        }
