"""Metrics of the handler, for Prometheus: TorchServe's metrics endpoint shows them.

A worker tells TorchServe of a metric by printing a line, so observations are kept, and told once a
second by a thread: no request waits for that.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

PERIOD = 1.0  # seconds
HISTOGRAMS = ("DecodeTime", "InferTime", "BatchFill")
"""Of each batch: ms to decode and ms to classify, by image on average, and the part of batchSize
that it filled, in (0, 1]. TorchServe's buckets, from 0.005 to 10, fit all three."""
ANSWERS = "Answers"
"""A counter by label: the likeliest one of each image, or REFUSED."""
REFUSED = "refused"
_PLAIN = str.maketrans(",:|#", "    ")
"""What TorchServe takes for the end of a label in the line by which it is told."""


class Metrics:
    """Observations of one worker.

    Args:
        cache: TorchServe's metrics; without those of deploy/metrics.yaml nothing is told.
        model: the model's name.
        version: the model's version.
    """

    def __init__(self, cache: Any, model: str, version: str) -> None:
        self._dimensions = [model, version]
        self._observations: list[tuple[float, ...]] = []
        self._answers: Counter[str] = Counter()
        self._lock = threading.Lock()
        known = _find(cache)
        if known is not None:
            self._histograms, self._counter = known
            threading.Thread(target=self._tell_for_ever, name="metrics", daemon=True).start()
        self._is_told = known is not None

    def observe(
        self, decode: float, infer: float, images: int, fill: float, labels: Sequence[str]
    ) -> None:
        """Note a batch.

        Args:
            decode: seconds to decode all its images.
            infer: seconds to classify them.
            images: how many there are.
            fill: the part of the largest batch that it filled, in (0, 1].
            labels: the likeliest one of each image that counts, or REFUSED.
        """
        if self._is_told:
            each = 1e3 / max(1, images)
            with self._lock:
                self._observations.append((decode * each, infer * each, fill))
                self._answers.update(labels)

    def tell(self) -> None:
        """Tell TorchServe what was observed since the last time."""
        with self._lock:
            observations, self._observations = self._observations, []
            answers, self._answers = self._answers, Counter()
        for values in observations:
            for histogram, value in zip(self._histograms, values, strict=True):
                histogram.add_or_update(round(value, 4), self._dimensions)
        for label, count in answers.items():
            self._counter.add_or_update(count, [*self._dimensions, label.translate(_PLAIN)])

    def _tell_for_ever(self) -> None:
        while True:
            time.sleep(PERIOD)
            self.tell()


def _find(cache: Any) -> tuple[list[Any], Any] | None:
    """Return the metrics that TorchServe was configured with: histograms and the counter."""
    from ts.metrics.metric_cache_errors import MetricsCacheKeyError
    from ts.metrics.metric_type_enum import MetricTypes

    try:
        histograms = [cache.get_metric(name, MetricTypes.HISTOGRAM) for name in HISTOGRAMS]
        return histograms, cache.get_metric(ANSWERS, MetricTypes.COUNTER)
    except MetricsCacheKeyError:
        return None
