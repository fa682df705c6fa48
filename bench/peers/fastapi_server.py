"""FastAPI with uvicorn: one image a call, as its users do who have no batching."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from bench.peers.work import PORT, WORKERS, Answer, work

app = FastAPI()
classifier = work(gathers=False)


def classify(data: bytes) -> Answer:
    """Decode and classify one image."""
    return classifier.classify([classifier.decode(data)])[0]


@app.post("/predict")
async def predict(request: Request) -> Answer:
    """Answer one request; the work goes to a thread, so that the loop stays free."""
    return await run_in_threadpool(classify, await request.body())


if __name__ == "__main__":
    # Without the limit uvicorn starts workers anew that take longer than 5 s to import torch.
    uvicorn.run(
        "bench.peers.fastapi_server:app",
        port=PORT,
        workers=WORKERS,
        log_level="warning",
        timeout_worker_healthcheck=60,
    )
