"""How many requests a server has answered, and how many it failed, by TorchServe's counters."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

TIMEOUT = 10.0  # seconds
FAILED = "Requests5XX_total"
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
    try:
        answer = httpx.get(f"{metrics}/metrics", timeout=TIMEOUT, trust_env=False)
        answer.raise_for_status()
    except httpx.HTTPError:
        return None
    found = dict.fromkeys(COUNTERS, 0.0)
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            if sample.name in found:
                found[sample.name] += sample.value
    return Answered(sum(found.values()), found[FAILED])
