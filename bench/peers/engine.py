"""Our engine and our decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import model
from model.engine import for_one

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


class Engine:
    """The net in 8-bit integers.

    Args:
        folder: holds what `model.load` reads.
        threads: of the engine.
        gathers: whether images come in batches, so that one alone may have an idle core.
    """

    def __init__(self, folder: Path, threads: int, gathers: bool) -> None:
        alone = for_one(threads) if gathers else None
        self.classifier = model.load(folder, threads=threads, alone=alone)

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """Decode an image: uint8 32×32×3."""
        return model.decode(data)

    def classify(self, images: Sequence[NDArray[np.uint8]]) -> list[dict[str, float]]:
        """Classify images; return the five likeliest labels of each."""
        rows = self.classifier.probabilities(np.stack(list(images)))
        return [self.classifier.top(row) for row in rows]
