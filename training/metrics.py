"""What is measured of a classifier's probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

BINS = 15
"""Bins of confidence in the calibration error, as in Guo et al., 2017."""

TEMPERATURES = [n / 100 for n in range(20, 301)]
"""What is tried in calibration."""


@dataclass(frozen=True)
class Metrics:
    """How good probabilities are, measured on labelled images.

    Attributes:
        images: how many.
        accuracy: the share, in [0, 1], whose likeliest label is the right one.
        by_label: that share, for the images of each label.
        confusion: confusion[i][j] images of label i were taken for label j.
        calibration_error: the expected one, in [0, 1]: how far confidence is from accuracy, on
            average over BINS bins of confidence.
        log_loss: the mean of -log of the right label's probability, in nats.
    """

    images: int
    accuracy: float
    by_label: dict[str, float]
    confusion: list[list[int]]
    calibration_error: float
    log_loss: float


def at_temperature(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Return the probabilities, float N×classes, of the same logits divided by a temperature."""
    scaled = probabilities.clip(1e-12) ** (1 / temperature)
    result: NDArray[np.float32] = scaled / scaled.sum(1, keepdims=True)
    return result


def best_temperature(probabilities: NDArray[np.float32], targets: NDArray[Any]) -> float:
    """Return the temperature, of TEMPERATURES, at which the log loss is least."""
    return min(TEMPERATURES, key=lambda t: log_loss(at_temperature(probabilities, t), targets))


def measure(
    probabilities: NDArray[np.float32], targets: NDArray[np.int64], labels: Sequence[str]
) -> Metrics:
    """Measure probabilities, float N×classes, against targets, int N, one or more of each label."""
    predicted = probabilities.argmax(1)
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (targets, predicted), 1)
    by_label = confusion.diagonal() / confusion.sum(1)
    return Metrics(
        images=len(targets),
        accuracy=float((predicted == targets).mean()),
        by_label=dict(zip(labels, by_label.tolist(), strict=True)),
        confusion=confusion.tolist(),
        calibration_error=calibration_error(probabilities, targets),
        log_loss=log_loss(probabilities, targets),
    )


def log_loss(probabilities: NDArray[np.float32], targets: NDArray[Any]) -> float:
    """Return the mean of -log of the right label's probability, in nats."""
    right = probabilities[np.arange(len(targets)), targets]
    return float(-np.log(right.clip(1e-12)).mean())


def calibration_error(probabilities: NDArray[np.float32], targets: NDArray[Any]) -> float:
    """Return the expected calibration error, in [0, 1]."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == targets
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs((right[bins == b] - confidence[bins == b]).sum()) for b in range(BINS)]
    return float(sum(gaps) / len(targets))
