"""Classify many pictures, on a server or straight from an archive, and go on after failures."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError, PredictionError, UnavailableError
from ..parallel import in_order
from .asker import CONNECTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from .pictures import Source
    from .prediction import Found, Prediction

    Predict = Callable[[bytes], Prediction]
    PredictEach = Callable[[Sequence[Source]], Generator[Found]]

MOST_GONE = 32
"""Pictures in turn without an answer, after which a server counts as gone."""


@dataclass(frozen=True)
class Outcome:
    """What came of one picture: a prediction, or why there is none.

    Attributes:
        is_gone: there is none because the server did not answer.
        seconds: from request to answer; 0 where there is no prediction, or it was not measured.
    """

    source: Source
    prediction: Prediction | None = None
    error: str = ""
    is_gone: bool = False
    seconds: float = 0.0


def each(predict_each: PredictEach, sources: Sequence[Source]) -> Generator[Outcome]:
    """Classify pictures, several in a request; yield what came of each, in order.

    Args:
        predict_each: that of a client or of an archive.
        sources: the pictures.

    Raises:
        UnavailableError: so many pictures in turn got no answer from a server that has gone.
    """
    with contextlib.closing(predict_each(sources)) as found:
        yield from _while_there(itertools.starmap(_outcome, zip(sources, found, strict=True)))


def one_by_one(
    predict: Predict, sources: Sequence[Source], hurry: Callable[[], object] = lambda: None
) -> Iterator[Outcome]:
    """Classify pictures, each in a request of its own; yield what came of each, and its time.

    Args:
        predict: that of a client or of an archive.
        sources: the pictures.
        hurry: is called when nobody waits for what is still asked, such as `Client.abandon`.

    Raises:
        UnavailableError: so many pictures in turn got no answer from a server that has gone.
    """

    def one(source: Source) -> Outcome:
        try:
            return ask(predict, source, source.read())
        except InputError as error:
            return _outcome(source, error)

    with contextlib.closing(in_order(one, sources, CONNECTIONS, hurry)) as outcomes:
        yield from _while_there(outcomes)


def _while_there(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """Yield outcomes until a server has gone: no use in waiting for each of 10,000 pictures."""
    gone = 0
    for outcome in outcomes:
        yield outcome
        gone = gone + 1 if outcome.is_gone else 0
        if gone == MOST_GONE:
            raise UnavailableError(f"no answer to {gone} pictures in turn: {outcome.error}")


def _outcome(source: Source, found: Found) -> Outcome:
    if isinstance(found, PredictionError):
        return Outcome(source, error=str(found), is_gone=isinstance(found, UnavailableError))
    return Outcome(source, found)


def ask(predict: Predict, source: Source, image: bytes) -> Outcome:
    """Classify one picture, which was read from the source; return what came of it."""
    begin = time.perf_counter()
    try:
        prediction = predict(image)
    except PredictionError as error:
        return _outcome(source, error)
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
    csv.writer(line).writerow([outcome.source.name, *told])
    return line.getvalue().removesuffix("\r\n")  # by its line's end it knows what to quote
