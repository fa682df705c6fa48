"""Weights and their lock: the file, and what it must be.

The weights are a safetensors file, which can hold no code. The lock beside it is JSON with the
file's sha256 and size, the accuracy that was measured, and the versions that trained it.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load as parse

from .net import Net

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

WEIGHTS = "weights.safetensors"
LOCK = "weights.lock"


class WeightsError(ValueError):
    """The weights are damaged, or don't fit the net or their lock; the message says which."""


def digest(data: bytes) -> dict[str, Any]:
    """Return what a lock says of a weights file's bytes: its sha256 (hex) and size (bytes)."""
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def read(weights: Path, lock: Path) -> dict[str, Tensor]:
    """Read a state dict, float tensors by parameter name, and check it against its lock.

    Raises:
        WeightsError: a file is missing, or the weights are not those of the lock.
    """
    try:
        data = weights.read_bytes()
        locked = dict(json.loads(lock.read_text()))
    except FileNotFoundError as error:
        raise WeightsError(f"{error.filename} is missing") from None
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{lock.name} is no JSON object: {error}") from None
    for key, value in digest(data).items():
        if locked.get(key) != value:
            says = locked.get(key)
            raise WeightsError(f"{weights.name} has {key} {value}, but {lock.name} says {says}")
    try:
        return parse(data)
    except SafetensorError as error:
        raise WeightsError(f"{weights.name} is no safetensors file: {error}") from None


def fit(state: dict[str, Tensor], classes: int) -> Net:
    """Build the net that a state dict belongs to, in evaluation mode.

    Raises:
        WeightsError: names or shapes are not those of a `Net` with that many classes.
    """
    net = Net(classes)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        faults = " ".join(str(error).split()).partition(": ")[2] or str(error)
        raise WeightsError(f"weights don't fit Net({classes}): {faults}") from None
    return net.eval()
