"""Two versions on the same pictures: how often they agree, which is right, which is faster."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import PredictionError, UnavailableError
from ..predicting.outcomes import Outcome, one_by_one

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..predicting.outcomes import Predict
    from ..predicting.pictures import Source
    from ..predicting.prediction import Prediction


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
        pictures: how many both answered.
        old, new: each version by itself.
        agreement: the part that both give the same label, in [0, 1].
        changes: from which label to which how many pictures went.
        differences: the pictures that went, each once, however often it was asked.
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
    names: tuple[str, str],
    predictors: tuple[Predict, Predict],
    sources: Sequence[Source],
    hurry: Callable[[], object] = lambda: None,
) -> Comparison:
    """Ask two versions the same pictures, one version after the other.

    Args:
        names: of the old and the new version.
        predictors: what classifies by each.
        sources: the pictures; their labels count where all have one.
        hurry: as that of `outcomes.one_by_one`.

    Raises:
        PredictionError: the new version has no answer to any of them. (The old one may have none:
            then the new one is what is needed.)
    """
    tally, outcomes, seconds = Tally(names), list[list[Outcome]](), list[float]()
    for predictor, may_be_gone in zip(predictors, (True, False), strict=True):
        begin = time.perf_counter()
        outcomes.append(_ask_all(predictor, sources, hurry, may_be_gone))
        seconds.append(time.perf_counter() - begin)
    if all(outcome.prediction is None for outcome in outcomes[1]):
        raise PredictionError(f"{names[1]} has no answer to any picture: {outcomes[1][0].error}")
    for old, new in zip(*outcomes, strict=True):
        tally.add(old, new)
    return tally.result(*seconds)


def _ask_all(
    predictor: Predict, sources: Sequence[Source], hurry: Callable[[], object], may_be_gone: bool
) -> list[Outcome]:
    """Return what came of each picture; where nobody answers any more, the rest has no answer."""
    outcomes: list[Outcome] = []
    try:
        for outcome in one_by_one(predictor, sources, hurry):
            outcomes.append(outcome)
    except UnavailableError as error:
        if not may_be_gone:
            raise
        rest = sources[len(outcomes) :]
        outcomes += [Outcome(source, error=str(error), is_gone=True) for source in rest]
    return outcomes


class Tally:
    """What two versions make of the same pictures, added up.

    Args:
        names: of the old and the new version.

    Attributes:
        asked: how many pictures were added, answered or not.
    """

    def __init__(self, names: tuple[str, str]) -> None:
        self.names, self.asked = names, 0
        self._sides = [_Sums(name) for name in names]
        self._both = 0
        self._changes: Counter[tuple[str, str]] = Counter()
        self._differences: dict[str, Difference] = {}

    def add(self, old: Outcome, new: Outcome) -> None:
        """Add what both made of a picture; one may come again and again."""
        self.asked += 1
        for side, outcome in zip(self._sides, (old, new), strict=True):
            side.add(outcome)
        a, b, source = old.prediction, new.prediction, old.source
        if a is None or b is None:
            return
        self._both += 1
        if a.label != b.label:
            self._changes[a.label, b.label] += 1
            self._differences.setdefault(source.name, Difference(source.name, source.label, a, b))

    def result(self, old_seconds: float, new_seconds: float) -> Comparison:
        """Return what was found, within so many seconds of each version."""
        old, new = self._sides
        changed = self._changes.total()
        return Comparison(
            pictures=self._both,
            old=old.side(old_seconds),
            new=new.side(new_seconds),
            agreement=1 - changed / self._both if self._both else 0.0,
            changes=dict(self._changes.most_common()),
            differences=list(self._differences.values()),
        )


class _Sums:
    """What adds up to a `Side`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._seconds: list[float] = []
        self._confidence = 0.0
        self._labelled = self._right = 0
        self._failed = 0

    def add(self, outcome: Outcome) -> None:
        found = outcome.prediction
        if found is None:
            self._failed += 1
            return
        self._seconds.append(outcome.seconds)
        self._confidence += found.probability
        self._labelled += bool(outcome.source.label)
        self._right += outcome.source.label == found.label

    def side(self, elapsed: float) -> Side:
        seconds, count = self._seconds, len(self._seconds)
        p50, p99 = 1e3 * np.percentile(seconds or [0.0], (50, 99))
        return Side(
            name=self._name,
            accuracy=self._right / count if count and self._labelled == count else None,
            confidence=self._confidence / count if count else 0.0,
            p50=float(p50),
            p99=float(p99),
            rate=count / elapsed,
            failed=self._failed,
        )


def changes(found: Comparison) -> list[tuple[str, str, str]]:
    """Return rows of a label of the old version, that of the new one, and how many pictures."""
    counted = [(old, new, f"{count:,}") for (old, new), count in found.changes.items()]
    return [(found.old.name, found.new.name, "pictures"), *counted]


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
