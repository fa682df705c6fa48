"""The classifier: net, weights and labels as one object, without any server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import image, weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from .net import Net

TOP = 5
"""How many labels an answer holds at most."""


class Classifier:
    """A net with its labels, on one device.

    Args:
        net: in evaluation mode.
        labels: one for each output of the net, in order.
        device: where the net runs.
    """

    def __init__(self, net: Net, labels: Sequence[str], device: torch.device | str = "cpu") -> None:
        self.net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.labels = tuple(labels)
        self.device = device

    @torch.inference_mode()
    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify a batch.

        Args:
            pixels: uint8 N×32×32×3 RGB, as `image.decode` makes them.

        Returns:
            float32 N×classes in [0, 1]; each row adds up to 1.
        """
        batch = torch.tensor(pixels).to(self.device)  # a copy: images of PIL are read-only
        logits = self.net(image.normalise(batch))
        result: NDArray[np.float32] = logits.softmax(dim=1).cpu().numpy()
        return result

    def top(self, probabilities: NDArray[np.float32], count: int = TOP) -> dict[str, float]:
        """Return the likeliest labels of one row of probabilities, likeliest first."""
        order = (-probabilities).argsort(kind="stable")[:count]
        return {self.labels[i]: float(probabilities[i]) for i in order}


def load(folder: str | Path, device: torch.device | str = "cpu") -> Classifier:
    """Load the classifier that a folder holds: `model/`, or an unpacked archive.

    Args:
        folder: holds weights.safetensors, weights.lock and index_to_name.json.
        device: where the net shall run.

    Raises:
        WeightsError: the weights don't fit the net, the labels or the lock.
    """
    folder = Path(folder)
    labels = read_labels(folder / "index_to_name.json")
    state = weights.read(folder / weights.WEIGHTS, folder / weights.LOCK)
    return Classifier(weights.fit(state, len(labels)), labels, device)


def read_labels(path: Path) -> list[str]:
    """Read labels in the order of the net's outputs from TorchServe's index_to_name.json."""
    names = json.loads(path.read_text())
    return [names[str(index)] for index in range(len(names))]
