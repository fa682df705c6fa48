"""What the engine does on a GPU, by batch, against the net as tutorials run it.

`python -m bench.gpu` measures, and writes its part of docs/benchmarks.md. TorchServe has no part in
it, so it needs torch and little more.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch

from model import weights
from model.classifier import read_labels
from model.engine_torch import CudaEngine, TorchEngine
from model.image import SHAPE, normalise

from .alone import rate
from .page import put, spread, table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from model.net import Net

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
ROUNDS = 5
SECONDS = 0.2  # that each is run for, in each round
MODEL = Path("model")


class Tutorial:
    """Eager torch in float32, as a tutorial has it."""

    def __init__(self, net: Net, device: str) -> None:
        self.net, self.device = net.to(device), device

    @torch.inference_mode()
    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 N×32×32×3 RGB pixels to float32 N×classes probabilities in [0, 1]."""
        images = normalise(torch.from_numpy(pixels)).to(self.device)
        rows: NDArray[np.float32] = self.net(images).softmax(1).cpu().numpy()
        return rows


def net() -> Net:
    """Return the released net, in floats, on the CPU."""
    classes = len(read_labels(MODEL / "index_to_name.json"))
    return weights.fit(weights.read(MODEL), classes)


def measure(device: str) -> list[list[str]]:
    """Return a table's lines: each engine's images a second by batch, and ours against both.

    All get the same uint8 pixels in main memory, and leave probabilities there.
    """
    engines: dict[str, Tutorial | TorchEngine] = {
        "tutorial": Tutorial(net(), device),
        "eager": TorchEngine(net(), device),
        "ours": CudaEngine(net(), device),
    }
    chance = np.random.default_rng(0)
    lines = []
    for batch in BATCHES:
        pixels = chance.integers(256, size=(batch, *SHAPE), dtype=np.uint8)
        found: dict[str, list[float]] = {name: [] for name in engines}
        for number in range(ROUNDS + 1):  # the first warms up
            for name, engine in engines.items():
                value = rate(engine.probabilities, pixels, SECONDS)
                found[name] += [value] * (number > 0)
        middle = {name: median(values) for name, values in found.items()}
        lines.append(
            [str(batch), *map(spread, found.values()), f"{1e3 * batch / middle['ours']:.2f}"]
            + [f"{middle['ours'] / middle[name]:.1f}×" for name in ("tutorial", "eager")]
        )
        print(" | ".join(lines[-1]))
    return lines


def machine(device: str) -> str:
    """Return on what, with what and when it was measured."""
    name, cuda = torch.cuda.get_device_name(device), torch.version.cuda
    torch_version = torch.__version__.partition("+")[0]
    return (
        f"{name}; Python {platform.python_version()}, torch {torch_version}, CUDA {cuda}; "
        f"{datetime.date.today().isoformat()}; n = {ROUNDS} rounds of {SECONDS} s"
    )


def main() -> int:
    """Measure, and write it."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=main.__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--page", type=Path, default=Path("docs/benchmarks.md"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench.gpu: torch finds no GPU here", file=sys.stderr)
        return 1
    head = ["batch", "tutorial (eager, float32), 1/s", "eager, float16, 1/s"]
    head += ["ours (graph, float16), 1/s", "ours, ms", "against tutorial", "against eager"]
    text = table(head, measure(arguments.device))
    put(arguments.page, "gpu", f"{machine(arguments.device)}\n\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
