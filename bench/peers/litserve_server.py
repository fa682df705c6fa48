"""LitServe: images in base64 in JSON, as its tutorials send them; batched."""

from __future__ import annotations

import base64
from typing import Any

import litserve

from bench.peers.work import BATCH, DELAY, PORT, WORKERS, Answer, work


class Classify(litserve.LitAPI):
    """Decodes and classifies."""

    def setup(self, device: str) -> None:
        """Load the classifier."""
        self.work = work()

    def decode_request(self, request: dict[str, str]) -> Any:
        """Decode one image."""
        return self.work.decode(base64.b64decode(request["image_data"]))

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Leave the batch to `predict`."""
        return inputs

    def predict(self, images: list[Any]) -> list[Answer]:
        """Classify a batch."""
        return self.work.classify(images)

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        """Give each request its answer."""
        return output

    def encode_response(self, output: dict[str, float]) -> dict[str, float]:
        """Answer one request."""
        return output


if __name__ == "__main__":
    api = Classify(max_batch_size=BATCH, batch_timeout=DELAY / 1000)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS)
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning")
