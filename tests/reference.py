"""The reference: what the net answers by torch, torchvision and PIL, with none of our code."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional
from torchvision import transforms

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

LABELS = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TOLERANCE = 1e-3
"""How far a served probability may be from the reference's."""

_preprocess = transforms.Compose(
    [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
)


def probabilities(images: Iterable[bytes]) -> list[dict[str, float]]:
    """Return, for each image file, the probability of each label."""
    state = load_file(Path("model/weights.safetensors"))
    inputs = [
        _preprocess(Image.open(io.BytesIO(i)).convert("RGB").resize((32, 32))) for i in images
    ]
    rows = [_forward(state, chunk).softmax(1) for chunk in torch.stack(inputs).split(100)]
    return [dict(zip(LABELS, row.tolist(), strict=True)) for row in torch.cat(rows)]


def assert_agrees(answer: dict[str, float], expected: dict[str, float]) -> None:
    """Fail unless an answer holds the five likeliest labels, likeliest first, as expected."""
    assert len(answer) == 5
    assert list(answer.values()) == sorted(answer.values(), reverse=True)
    for label, probability in answer.items():
        assert abs(probability - expected[label]) <= TOLERANCE, (label, answer, expected)
    others = [expected[label] for label in LABELS if label not in answer]
    assert max(others) <= min(answer.values()) + TOLERANCE


def _norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return functional.batch_norm(x, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"])


def _forward(state: dict[str, Tensor], x: Tensor) -> Tensor:
    for i in range(1, 7):
        x = functional.conv2d(x, state[f"conv{i}.weight"], state[f"conv{i}.bias"], padding=1)
        x = _norm(state, f"norm{i}", functional.relu(x))
        if i % 2 == 0:
            x = functional.max_pool2d(x, 2)
    x = functional.relu(functional.linear(x.flatten(1), state["fc1.weight"], state["fc1.bias"]))
    return functional.linear(_norm(state, "norm7", x), state["fc2.weight"], state["fc2.bias"])
