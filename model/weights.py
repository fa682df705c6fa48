"""Weights and their lock: the files, and what they must be.

The weights are a safetensors file, which can hold no code. The lock beside it is JSON with the
file's sha256 and size, the accuracy that was measured, and the versions that trained it; and the
same of the net in 8-bit integers, where there is one: OpenVINO's graph and its constants.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from .net import Net

WEIGHTS = "weights.safetensors"
LOCK = "weights.lock"
INT8 = ("int8.xml", "int8.bin")
"""OpenVINO's graph and its constants."""
SHOWN = 3
"""How many faults of a kind are told."""


class WeightsError(ValueError):
    """The weights are damaged, or don't fit the net or their lock; the message says which."""


def digest(data: bytes) -> dict[str, Any]:
    """Return what a lock says of a weights file's bytes: its sha256 (hex) and size (bytes)."""
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def read(folder: Path) -> dict[str, Tensor]:
    """Read a folder's state dict, float tensors by parameter name, and check it against its lock.

    Raises:
        WeightsError: a file is missing, or the weights are not those of the lock.
    """
    return parse(check(folder), WEIGHTS)


def parse(data: bytes, name: str) -> dict[str, Tensor]:
    """Return the state dict that a safetensors file's bytes hold.

    Raises:
        WeightsError: they are none; the message calls the file by this name.
    """
    from safetensors.torch import load  # here, for it imports torch

    try:
        return load(data)
    except SafetensorError as error:
        raise WeightsError(f"{name} is no safetensors file: {error}") from None


def check(folder: Path) -> bytes:
    """Return the bytes of a folder's weights file if they are those of its lock.

    Raises:
        WeightsError: a file is missing, or the weights are not those of the lock.
    """
    return _checked(folder / WEIGHTS, _locked(folder / LOCK), folder / LOCK)


def has_int8(folder: Path) -> bool:
    """Tell whether a folder's lock tells of the net in 8-bit integers."""
    return "int8" in _locked(folder / LOCK)


def read_int8(folder: Path) -> tuple[bytes, bytes]:
    """Read the net in 8-bit integers: OpenVINO's graph and its constants.

    Raises:
        WeightsError: there is none, or it is not that of the lock.
    """
    lock = folder / LOCK
    locked = _locked(lock).get("int8")
    if locked is None:
        raise WeightsError(f"{LOCK} tells of no net in 8-bit integers: `make train` makes one")
    graph, constants = (_checked(folder / name, locked.get(name, {}), lock) for name in INT8)
    return graph, constants


def _locked(lock: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(lock.read_text()))
    except FileNotFoundError:
        raise WeightsError(f"{lock} is missing") from None
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{lock.name} is no JSON object: {error}") from None


def _checked(path: Path, locked: dict[str, Any], lock: Path) -> bytes:
    """Read a file, and compare it with what its lock says."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing") from None
    for key, value in digest(data).items():
        if locked.get(key) != value:
            raise WeightsError(
                f"{path.name} has {key} {value}, but {lock.name} says {locked.get(key)}"
            )
    return data


def fit(state: dict[str, Tensor], classes: int) -> Net:
    """Build the net that a state dict belongs to, in evaluation mode.

    Raises:
        WeightsError: names or shapes are not those of a `Net` with that many classes.
    """
    from .net import Net  # here, for it imports torch

    net = Net(classes)
    try:
        net.load_state_dict(state)
    except RuntimeError:
        faults = "; ".join(_faults(state, net.state_dict()))
        raise WeightsError(f"weights don't fit Net({classes}): {faults}") from None
    return net.eval()


def _faults(state: dict[str, Tensor], expected: dict[str, Tensor]) -> Iterator[str]:
    """Yield what is wrong with a state dict: of each kind of fault, some."""
    faults = {
        "missing": [name for name in expected if name not in state],
        "unknown": sorted(state.keys() - expected.keys()),  # a file has an order of its own
        "of another shape": [
            f"{name} {list(state[name].shape)}, not {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ],
    }
    for kind, names in faults.items():
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            yield f"{kind}: {', '.join(names[:SHOWN])}{more}"
