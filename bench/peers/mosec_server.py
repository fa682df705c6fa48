"""mosec: a batch of decoded images for each call of a worker."""

from __future__ import annotations

from typing import Any

from mosec import Server, Worker

from bench.peers.work import BATCH, DELAY, WORKERS, Answer, work


class Classify(Worker):
    """Decodes and classifies."""

    def __init__(self) -> None:
        super().__init__()
        self.work = work()

    def deserialize(self, data: bytes) -> Any:
        """Decode the body, which comes as a bytearray."""
        return self.work.decode(bytes(data))

    def forward(self, data: list[Any]) -> list[Answer]:
        """Classify a batch."""
        return self.work.classify(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Classify, num=WORKERS, max_batch_size=BATCH, max_wait_time=DELAY)
    server.run()
