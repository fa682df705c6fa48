"""Classify many pictures, on a server or straight from an archive, and go on after failures."""

from __future__ import annotations

import csv
import io
import json
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from .client import CONNECTIONS
from .errors import InputError, PredictionError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .pictures import Source
    from .prediction import Prediction

    Predict = Callable[[bytes], Prediction]

AHEAD = 4 * CONNECTIONS
"""Pictures that are read before their turn: enough for full batches, and not a whole folder."""


@dataclass(frozen=True)
class Outcome:
    """What came of one picture: a prediction, or why there is none.

    Attributes:
        is_gone: there is none because the server did not answer.
        seconds: from request to answer; 0 where there is no prediction.
    """

    source: Source
    prediction: Prediction | None = None
    error: str = ""
    is_gone: bool = False
    seconds: float = 0.0


def run(
    predict: Predict, sources: Iterable[Source], at_once: int = CONNECTIONS
) -> Iterator[Outcome]:
    """Classify pictures, several at a time; yield what came of each, in order.

    Args:
        predict: `Client.predict` or that of an archive.
        sources: the pictures.
        at_once: how many are under way together.

    Raises:
        UnavailableError: so many pictures in turn got no answer from a server that has gone.
    """
    gone = 0

    def one(source: Source) -> Outcome:
        try:
            return ask(predict, source, source.read())
        except InputError as error:
            return Outcome(source, error=str(error))

    pool = ThreadPoolExecutor(at_once)
    waiting: deque[Future[Outcome]] = deque()
    rest = iter(sources)
    try:
        while True:
            waiting.extend(
                pool.submit(one, source) for source in islice(rest, AHEAD - len(waiting))
            )
            if not waiting:
                return
            outcome = waiting.popleft().result()
            gone = gone + 1 if outcome.is_gone else 0
            if gone >= at_once:
                raise UnavailableError(f"no answer to {gone} pictures in turn: {outcome.error}")
            yield outcome
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C need not wait for what comes


def ask(predict: Predict, source: Source, image: bytes) -> Outcome:
    """Classify one picture, which was read from the source; return what came of it."""
    begin = time.perf_counter()
    try:
        prediction = predict(image)
    except PredictionError as error:
        return Outcome(source, error=str(error), is_gone=isinstance(error, UnavailableError))
    return Outcome(source, prediction, seconds=time.perf_counter() - begin)


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
