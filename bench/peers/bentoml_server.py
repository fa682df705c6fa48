"""BentoML 1.4: a batchable method behind an API that takes one image."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 (BentoML reads the annotation)
from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType

from bench.peers.work import BATCH, WORKERS, work

PATIENCE = 20_000
"""ms; BentoML answers 503 where it expects a request to take longer."""


@bentoml.service(workers=WORKERS, traffic={"timeout": 30})
class Batches:
    """Classifies batches; BentoML gathers them."""

    def __init__(self) -> None:
        self.work = work()

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=PATIENCE)
    def classify(self, images: list[bytes]) -> list[dict[str, Any]]:
        """Classify a batch of image files."""
        return list(self.work.classify([self.work.decode(data) for data in images]))


@bentoml.service(workers=1, traffic={"timeout": 30})
class Classifier:
    """Takes one image."""

    batches = bentoml.depends(Batches)

    @bentoml.api
    async def predict(self, image: Annotated[Path, ContentType("image/*")], /) -> dict[str, Any]:
        """Classify one image."""
        answers = await self.batches.to_async.classify([image.read_bytes()])
        return dict(answers[0])
