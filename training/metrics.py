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
class Step:
    """Images whose likeliest label has about the same probability.

    Attributes:
        images: how many.
        confidence: the mean of those probabilities, in [0, 1].
        accuracy: the share, in [0, 1], that is right.
    """

    images: int
    confidence: float
    accuracy: float


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
        reliability: those bins that hold images.
        log_loss: the mean of -log of the right label's probability, in nats.
    """

    images: int
    accuracy: float
    by_label: dict[str, float]
    confusion: list[list[int]]
    calibration_error: float
    reliability: list[Step]
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
    confidence, hits = probabilities.max(1), predicted == targets
    return Metrics(
        images=len(targets),
        accuracy=float(hits.mean()),
        by_label=dict(zip(labels, by_label.tolist(), strict=True)),
        confusion=confusion.tolist(),
        calibration_error=calibration_error(confidence, hits),
        reliability=reliability(confidence, hits),
        log_loss=log_loss(probabilities, targets),
    )


def log_loss(probabilities: NDArray[np.float32], targets: NDArray[Any]) -> float:
    """Return the mean of -log of the right label's probability, in nats."""
    right = probabilities[np.arange(len(targets)), targets]
    return float(-np.log(right.clip(1e-12)).mean())


def calibration_error(confidence: NDArray[np.float32], right: NDArray[np.bool_]) -> float:
    """Return the expected calibration error, in [0, 1].

    Args:
        confidence: the probability, N, of each image's likeliest label.
        right: bool N, whether that label is the right one.
    """
    steps = reliability(confidence, right)
    gaps = [step.images * abs(step.accuracy - step.confidence) for step in steps]
    return sum(gaps) / len(right)


def reliability(confidence: NDArray[np.float32], right: NDArray[np.bool_]) -> list[Step]:
    """Return what images of about the same confidence have in common; arguments as above."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    inside = [bins == index for index in np.unique(bins)]
    return [Step(int(i.sum()), float(confidence[i].mean()), float(right[i].mean())) for i in inside]
