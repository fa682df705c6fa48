"""Eager torch in float32 and torchvision's transforms: what a tutorial shows."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torchvision import transforms

from model.classifier import read_labels
from model.weights import fit, read

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Tutorial:
    """The float net.

    Args:
        folder: holds weights, their lock and labels.
    """

    def __init__(self, folder: Path) -> None:
        self.labels = read_labels(folder / "index_to_name.json")
        self.net = fit(read(folder), len(self.labels))
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
    def classify(self, images: Sequence[torch.Tensor]) -> list[dict[str, float]]:
        """Classify images; return the five likeliest labels of each."""
        top = self.net(torch.stack(list(images))).softmax(1).topk(5)
        return [
            {self.labels[i]: p for i, p in zip(indices, row, strict=True)}
            for indices, row in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
