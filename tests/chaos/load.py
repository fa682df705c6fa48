"""Steady load, as users make it: many clients, each asking again as soon as it is answered."""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from classifier import Client, PredictionError, load

from ..images import crops

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from classifier import Prediction

CLIENTS = 16
IMAGES = 200
CLOSE = 0.01
"""Of two labels whose probabilities are so near, either counts: integers round otherwise in
batches of other sizes."""


@dataclass(frozen=True)
class Answer:
    """One answer: when it was asked for and when it came (s, monotonic), and what it says."""

    asked: float
    answered: float
    image: int
    prediction: Prediction


@dataclass
class Load:
    """What a load has found so far.

    Attributes:
        images: files that are asked for, again and again.
        answers: in the order in which they came.
        failures: what the server failed in, and the client asked again.
        lost: requests that got no answer at all, in words.
    """

    images: list[bytes]
    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def wait_for(self, answers: int, deadline: float = 120) -> None:
        """Wait until there are so many answers more; fail after `deadline` s."""
        goal, end = len(self.answers) + answers, time.monotonic() + deadline
        while len(self.answers) < goal:
            assert time.monotonic() < end, f"{len(self.answers)} answers, {goal} awaited"
            time.sleep(0.01)


@contextmanager
def load_on(url: str, seed: int, clients: int = CLIENTS) -> Iterator[Load]:
    """Keep a server busy meanwhile."""
    load = Load(list(crops(IMAGES, seed)))
    done = threading.Event()
    order = itertools.count()
    client = Client(url, on_retry=load.failures.append)

    def ask() -> None:
        while not done.is_set():
            image, begin = next(order) % IMAGES, time.monotonic()
            try:
                prediction = client.predict(load.images[image])
            except PredictionError as error:
                load.lost.append(str(error))
            else:
                load.answers.append(Answer(begin, time.monotonic(), image, prediction))

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        done.set()
        for thread in threads:
            thread.join()
        client.close()


def right_labels(archive: Path, files: list[bytes]) -> list[set[str]]:
    """Return the likeliest label of each image file, by the archive's own code, without a server.

    Where several are nearly as likely, all of them.
    """
    classifier = load(archive)
    return [likeliest(classifier.predict(data).probabilities) for data in files]


def likeliest(probabilities: dict[str, float], close: float = CLOSE) -> set[str]:
    """Return the labels that are as likely as the likeliest one, or nearly so."""
    best = max(probabilities.values())
    return {label for label, value in probabilities.items() if value >= best - close}


def assert_all_right(load: Load, archive: Path) -> None:
    """Fail unless every request was answered, and every answer is what the archive says."""
    assert not load.lost, load.lost[:3]
    expected = right_labels(archive, load.images)
    wrong = [a for a in load.answers if a.prediction.label not in expected[a.image]]
    assert not wrong, wrong[:3]
