"""What the peers do with an image: as tutorials do it, or as we do."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torchvision import transforms

import model
from model.weights import LOCK, WEIGHTS, fit, read

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PORT = int(os.environ.get("BENCH_PORT", "8000"))
WORKERS = int(os.environ.get("BENCH_WORKERS", "2"))
BATCH = int(os.environ.get("BENCH_BATCH", "16"))
DELAY = int(os.environ.get("BENCH_DELAY", "2"))  # ms
THREADS = int(os.environ.get("BENCH_THREADS", "1"))

Answer = dict[str, float]


class Tutorial:
    """Eager torch in float32, torchvision's transforms: what a tutorial shows."""

    def __init__(self, folder: Path) -> None:
        self.labels = model.load(folder, "torch").labels
        self.net = fit(read(folder / WEIGHTS, folder / LOCK), len(self.labels))
        self.transform = transforms.Compose(
            [
                transforms.Resize((32, 32), transforms.InterpolationMode.BICUBIC),
                transforms.ToTensor(),
                transforms.Normalize([0.5] * 3, [0.5] * 3),
            ]
        )

    def decode(self, data: bytes) -> torch.Tensor:
        """Decode an image: float 3×32×32."""
        tensor: torch.Tensor = self.transform(Image.open(io.BytesIO(data)).convert("RGB"))
        return tensor

    @torch.inference_mode()
    def classify(self, images: Sequence[torch.Tensor]) -> list[Answer]:
        """Classify images; return the five likeliest labels of each."""
        top = self.net(torch.stack(list(images))).softmax(1).topk(5)
        return [
            {self.labels[i]: p for i, p in zip(indices, row, strict=True)}
            for indices, row in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]


class Engine:
    """Our engine and our decoding."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        self.stack = np.stack
        self.classifier = model.load(folder, threads=THREADS)

    def decode(self, data: bytes) -> Any:
        """Decode an image: uint8 32×32×3."""
        return model.decode(data)

    def classify(self, images: Sequence[Any]) -> list[Answer]:
        """Classify images; return the five likeliest labels of each."""
        rows = self.classifier.probabilities(self.stack(list(images)))
        return [self.classifier.top(row) for row in rows]


def work() -> Tutorial | Engine:
    """Return what BENCH_KIND asks for."""
    from pathlib import Path

    folder = Path("model")
    kind = os.environ.get("BENCH_KIND", "tutorial")
    return Engine(folder) if kind == "engine" else Tutorial(folder)
