"""Two versions on the same pictures: how often they agree, which is right, which is faster."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from statistics import fmean, quantiles
from typing import TYPE_CHECKING, Any

from . import predict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .pictures import Source
    from .predict import Predict
    from .prediction import Prediction


@dataclass(frozen=True)
class Side:
    """What one version made of the pictures.

    Attributes:
        name: of the version.
        accuracy: the part of the labelled pictures that it is right about, in [0, 1]; None where
            no picture has a label.
        confidence: the mean probability of the likeliest labels, in [0, 1].
        p50, p99: milliseconds from request to answer, by percentile.
        rate: answers in 1/s.
        failed: pictures without an answer.
    """

    name: str
    accuracy: float | None
    confidence: float
    p50: float
    p99: float
    rate: float
    failed: int


@dataclass(frozen=True)
class Difference:
    """A picture for which the versions have different labels."""

    image: str
    label: str
    old: Prediction
    new: Prediction


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
        pictures: how many were asked of both.
        old, new: each version by itself.
        agreement: the part that both give the same label, in [0, 1].
        changes: from which label to which how many pictures went.
        differences: the pictures that went.
    """

    pictures: int
    old: Side
    new: Side
    agreement: float
    changes: dict[tuple[str, str], int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)

    @property
    def loss(self) -> float | None:
        """By how much the new version is right less often, in [-1, 1]; None without labels."""
        if self.old.accuracy is None or self.new.accuracy is None:
            return None
        return self.old.accuracy - self.new.accuracy

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "pictures": self.pictures,
            "old": asdict(self.old),
            "new": asdict(self.new),
            "agreement": self.agreement,
            "changes": [
                {"from": a, "to": b, "pictures": count} for (a, b), count in self.changes.items()
            ],
            "differences": [asdict(difference) for difference in self.differences],
        }


def compare(
    names: tuple[str, str], predictors: tuple[Predict, Predict], sources: Sequence[Source]
) -> Comparison:
    """Ask two versions the same pictures, one version after the other.

    Args:
        names: of the old and the new version.
        predictors: what classifies by each.
        sources: the pictures; their labels count where all have one.
    """
    (old, old_side), (new, new_side) = (
        _ask(name, predictor, sources) for name, predictor in zip(names, predictors, strict=True)
    )
    both = [(s, a, b) for s, a, b in zip(sources, old, new, strict=True) if a and b]
    differences = [Difference(s.name, s.label, a, b) for s, a, b in both if a.label != b.label]
    changes = Counter((d.old.label, d.new.label) for d in differences)
    agreement = 1 - len(differences) / len(both) if both else 0.0
    return Comparison(
        len(both), old_side, new_side, agreement, dict(changes.most_common()), differences
    )


def _ask(
    name: str, predictor: Predict, sources: Sequence[Source]
) -> tuple[list[Prediction | None], Side]:
    """Classify all pictures by one version."""
    seconds: list[float] = []

    def timed(image: bytes) -> Prediction:
        begin = time.perf_counter()
        prediction = predictor(image)
        seconds.append(time.perf_counter() - begin)
        return prediction

    begin = time.perf_counter()
    outcomes = list(predict.run(timed, sources))
    elapsed = time.perf_counter() - begin
    answered = [(o.source.label, o.prediction) for o in outcomes if o.prediction is not None]
    percentiles = quantiles(seconds, n=100) if len(seconds) > 1 else 99 * [*seconds, 0.0][:1]
    right = [label == prediction.label for label, prediction in answered]
    side = Side(
        name=name,
        accuracy=fmean(right) if answered and all(label for label, _ in answered) else None,
        confidence=fmean(p.probability for _, p in answered) if answered else 0.0,
        p50=1e3 * percentiles[49] if seconds else 0.0,
        p99=1e3 * percentiles[98] if seconds else 0.0,
        rate=len(answered) / elapsed,
        failed=len(outcomes) - len(answered),
    )
    return [outcome.prediction for outcome in outcomes], side


def table(found: Comparison) -> list[tuple[str, str, str]]:
    """Return rows of a figure's name and its value for the old and for the new version."""

    def row(name: str, form: str, key: str) -> tuple[str, str, str]:
        values = [getattr(side, key) for side in (found.old, found.new)]
        old, new = ("–" if value is None else format(value, form) for value in values)
        return name, old, new

    return [
        ("", found.old.name, found.new.name),
        row("right", ".2%", "accuracy"),
        row("mean confidence", ".1%", "confidence"),
        row("p50, ms", ".1f", "p50"),
        row("p99, ms", ".1f", "p99"),
        row("pictures a second", ",.0f", "rate"),
        row("without an answer", ",d", "failed"),
    ]
