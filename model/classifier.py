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


class LabelsError(ValueError):
    """The labels can't be read; the message says why."""


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
        LabelsError: the labels can't be read.
    """
    folder = Path(folder)
    labels = read_labels(folder / "index_to_name.json")
    state = weights.read(folder / weights.WEIGHTS, folder / weights.LOCK)
    return Classifier(weights.fit(state, len(labels)), labels, device)


def read_labels(path: Path) -> list[str]:
    """Read labels, in the order of the net's outputs, from TorchServe's index_to_name.json.

    Raises:
        LabelsError: it is no JSON object of a name for each of "0", "1", …
    """
    try:
        names = json.loads(path.read_text())
        labels = [names[str(index)] for index in range(len(names))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabelsError(f"{path.name} can't be read as labels: {error!r}") from None
    if not labels or not all(isinstance(label, str) for label in labels):
        raise LabelsError(f"{path.name} must hold a name for each index, and nothing else")
    return labels
