"""BentoML 1.4: one service with a batchable method, as its guide to adaptive batching has it.

A batchable method takes and returns lists; a client sends a list of one.
"""

from __future__ import annotations

import base64
from typing import Any

import bentoml

from bench.peers.work import BATCH, WORKERS, work

PATIENCE = 20_000
"""ms; BentoML answers 503 where it expects a request to take longer."""


@bentoml.service(workers=WORKERS, traffic={"timeout": 30})
class Classifier:
    """Classifies batches; BentoML gathers them."""

    def __init__(self) -> None:
        self.work = work()

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=PATIENCE)
    def predict(self, images: list[str]) -> list[dict[str, Any]]:
        """Classify a batch of image files in base64."""
        return list(
            self.work.classify([self.work.decode(base64.b64decode(data)) for data in images])
        )
