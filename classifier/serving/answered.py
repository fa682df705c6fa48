"""How much a server has answered, and how many requests it failed, by the metrics that it tells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

TIMEOUT = 10.0  # seconds
FAILED = "Requests5XX_total"
BATCHES = "BatchFill_count"
COUNTERS = ("Requests2XX_total", "Requests4XX_total", FAILED)


@dataclass(frozen=True)
class Answered:
    """Answers of a server, of all its models and versions.

    Attributes:
        requests: that were answered, or refused.
        failed: those with a 5xx.
    """

    requests: float
    failed: float

    @property
    def share(self) -> float:
        """The part that failed, in [0, 1]; 0 where nothing was asked."""
        return self.failed / self.requests if self.requests else 0.0

    def __sub__(self, earlier: Answered) -> Answered:
        return Answered(self.requests - earlier.requests, self.failed - earlier.failed)


def read(metrics: str) -> Answered | None:
    """Return what a server has answered since it started; None where its metrics do not tell.

    Args:
        metrics: the metrics address.
    """
    found = dict.fromkeys(COUNTERS, 0.0)
    if (samples := _samples(metrics)) is None:
        return None
    for sample in samples:
        if sample.name in found:
            found[sample.name] += sample.value
    return Answered(sum(found.values()), found[FAILED])


def batches(metrics: str, model: str, version: str) -> float:
    """Return how many batches a version has answered; 0 where its handler is not ours.

    Where the metrics do not tell it is nan, which is neither more nor less than any number.

    Args:
        metrics: the metrics address.
        model: the model's name.
        version: its version.
    """
    of = {"ModelName": model, "ModelVersion": version}
    if (samples := _samples(metrics)) is None:
        return math.nan
    return sum(
        sample.value
        for sample in samples
        if sample.name == BATCHES and of.items() <= sample.labels.items()
    )


def _samples(metrics: str) -> list[Sample] | None:
    """Return what the metrics address tells; None where it does not.

    Nor does it where metrics are logged (`metrics_mode=log`, TorchServe's own default): there it
    answers, and tells nothing.
    """
    try:
        answer = httpx.get(f"{metrics}/metrics", timeout=TIMEOUT, trust_env=False)
        answer.raise_for_status()
    except httpx.HTTPError:
        return None
    families = text_string_to_metric_families(answer.text)
    return [sample for family in families for sample in family.samples] or None
