"""One bad request to four good ones."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import psutil

from classifier import InputError, load

from .. import reference
from .bad_input import FRONT_END, INTACT, bad, good, too_large
from .load import likeliest
from .test_soak import trend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from classifier import Classifier

    from ..deployment import Deployment
    from .bad_input import Request

CLIENTS = 16
CHUNK = 500
"""Requests between two looks at the workers' memory."""
ROUNDED = 0.4
"""How much less likely than the reference's likeliest label the one that is given may be: the
server's integers are rounded, and the reference's floats are not."""
WARM = 0.4
"""The part of a run in which memory may still grow: of allocators, caches and threads."""


class Judge:
    """Knows what must come back, without a server.

    Of an intact image the reference tells that, which shares no code with the archive. Whether a
    damaged one is still an image, and of what, only the archive's own decoders can say.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    def labels(self, requests: list[Request]) -> Iterator[set[str]]:
        """Yield the labels that each request may get; none where it must be refused."""
        intact = [r.image for r in requests if r.image and r.kind in INTACT]
        expected = iter(reference.probabilities(intact))
        for request in requests:
            if request.kind in INTACT:
                yield likeliest(next(expected), ROUNDED)
            else:
                yield self._own(request.image)

    def _own(self, image: bytes | None) -> set[str]:
        if image is None:
            return set()
        try:
            # pytest makes errors of warnings, and Pillow warns of odd TIFFs before it decodes them.
            with warnings.catch_warnings(action="ignore"):
                return likeliest(self._classifier.predict(image).probabilities)
        except InputError:
            return set()


def fault(request: Request, answer: httpx.Response, labels: set[str]) -> str | None:
    """Return what is wrong with an answer, or None."""
    said = f"{request.kind}: {answer.status_code} {answer.text[:300]}"
    if "Traceback" in answer.text:
        return f"a traceback: {said}"
    if answer.status_code == FRONT_END.get(request.kind):
        return None
    if answer.status_code == httpx.codes.OK:
        right = next(iter(answer.json())) in labels
        return None if right else f"{labels} expected: {said}"
    if not answer.is_client_error:
        return f"no 4xx: {said}"
    if labels:
        return f"a label expected: {said}"
    body = answer.json()
    told = body["code"] == answer.status_code and body["type"] and body["message"]
    return None if told else f"no cause: {said}"


def memory(workers: list[int]) -> float:
    """Return what the workers hold by themselves, in MB."""
    return sum(psutil.Process(pid).memory_full_info().uss for pid in workers) / 2**20


def test_bad_input(served: Deployment, long: bool, seed: int, figures: dict[str, Any]) -> None:
    total = 50_000 if long else 5_000
    draw = random.Random(seed)
    judge = Judge(load(served.place.model_store / "cifar10-1.0.mar"))
    management = served.server.management
    workers = sorted(worker.pid for worker in management.workers("cifar10", "1.0"))
    statuses: Counter[int] = Counter()
    kinds: Counter[str] = Counter()
    faults: list[str] = []
    held = []
    with (
        httpx.Client(base_url=served.inference, timeout=60, trust_env=False) as http,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):

        def ask(request: Request) -> httpx.Response:
            return http.post(request.path, content=request.body, headers=request.headers)

        for _ in range(0, total, CHUNK):
            requests = [bad(draw) if i % 5 == 4 else good(draw) for i in range(CHUNK - 1)]
            requests.append(too_large(draw))
            answers = list(pool.map(ask, requests))
            for request, answer, labels in zip(
                requests, answers, judge.labels(requests), strict=True
            ):
                statuses[answer.status_code] += 1
                kinds[request.kind] += 1
                if (wrong := fault(request, answer, labels)) is not None:
                    faults.append(wrong)
            held.append(memory(workers))
    after = held[int(WARM * len(held)) :]
    slope, error = trend(np.arange(len(after)) * CHUNK / 1000, np.array(after))
    figures |= {
        "seed": seed,
        "requests": total,
        "of these bad": total - kinds["good"],
        "by status": ", ".join(f"{status}: {n:,}" for status, n in sorted(statuses.items())),
        "answers that are wrong": len(faults),
        "workers that died": len(
            set(workers) - {w.pid for w in management.workers("cifar10", "1.0")}
        ),
        "memory of both workers (USS) at the end": f"{held[-1]:.0f} MB",
        "after the warm-up": f"{after[0]:.0f} MB",
        "its slope from there on": f"{slope:+.2f} ± {error:.2f} MB in 1,000 requests",
    }
    assert not faults, f"{len(faults)}: {faults[:5]}"
    assert sorted(w.pid for w in management.workers("cifar10", "1.0")) == workers, "a worker died"
    assert set(kinds) >= set(FRONT_END), "each kind has come"
    assert after[-1] <= 1.1 * after[0], f"memory grows: {held}"
