"""Classify many pictures, on a server or straight from an archive, and go on after failures."""

from __future__ import annotations

import csv
import io
import json
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .client import CONNECTIONS
from .errors import PredictionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .pictures import Source
    from .prediction import Prediction

    Predict = Callable[[bytes], Prediction]

AHEAD = 4 * CONNECTIONS
"""Pictures that are read before their turn: enough for full batches, and not a whole folder."""


@dataclass(frozen=True)
class Outcome:
    """What came of one picture: a prediction, or why there is none."""

    source: Source
    prediction: Prediction | None = None
    error: str = ""


def run(
    predict: Predict, sources: Iterable[Source], at_once: int = CONNECTIONS
) -> Iterator[Outcome]:
    """Classify pictures, several at a time; yield what came of each, in order.

    Args:
        predict: `Client.predict` or that of an archive.
        sources: the pictures.
        at_once: how many are under way together.
    """

    def one(source: Source) -> Outcome:
        try:
            return Outcome(source, predict(source.read()))
        except PredictionError as error:
            return Outcome(source, error=str(error))

    with ThreadPoolExecutor(at_once) as pool:
        waiting: deque[Future[Outcome]] = deque()
        for source in sources:
            waiting.append(pool.submit(one, source))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def as_text(outcome: Outcome) -> str:
    """Return an outcome as a line for people."""
    if outcome.prediction is None:
        return f"{'–':<10} {'':>6}  {outcome.source.name}: {outcome.error}"
    label, probability = outcome.prediction.label, outcome.prediction.probability
    return f"{label:<10} {probability:6.1%}  {outcome.source.name}"


def as_json(outcome: Outcome) -> str:
    """Return an outcome as one line of JSON."""
    said: dict[str, object] = {"image": outcome.source.name}
    if outcome.prediction is None:
        said["error"] = outcome.error
    else:
        said |= {
            "label": outcome.prediction.label,
            "probability": outcome.prediction.probability,
            "probabilities": outcome.prediction.probabilities,
            "version": outcome.prediction.version,
        }
    return json.dumps(said, ensure_ascii=False)


CSV_HEAD = "image,label,probability,version,error"


def as_csv(outcome: Outcome) -> str:
    """Return an outcome as a line of CSV: the columns of CSV_HEAD."""
    found = outcome.prediction
    told = (
        [found.label, found.probability, found.version, ""]
        if found
        else ["", "", "", outcome.error]
    )
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([outcome.source.name, *told])
    return line.getvalue()
