"""Ray Serve: a deployment that gathers batches."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray import serve
from starlette.requests import Request  # noqa: TC002 (Ray reads the annotation)

from bench.peers.work import BATCH, DELAY, PORT, WORKERS, Answer, work


@serve.deployment(num_replicas=WORKERS, max_ongoing_requests=4 * BATCH)
class Classify:
    """Decodes and classifies."""

    def __init__(self) -> None:
        self.work = work()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=DELAY / 1000)
    async def classify(self, images: list[Any]) -> list[Answer]:
        """Classify a batch."""
        return self.work.classify(images)

    async def __call__(self, request: Request) -> Answer:
        """Answer one request."""
        answer: Answer = await self.classify(self.work.decode(await request.body()))
        return answer


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Classify.bind(), route_prefix="/predict")
    while True:
        time.sleep(3600)
