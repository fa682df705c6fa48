"""What the peers do with an image: as tutorials do it, or as we do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

PORT = int(os.environ.get("BENCH_PORT", "8000"))
WORKERS = int(os.environ.get("BENCH_WORKERS", "2"))
BATCH = int(os.environ.get("BENCH_BATCH", "16"))
DELAY = int(os.environ.get("BENCH_DELAY", "2"))  # ms
THREADS = int(os.environ.get("BENCH_THREADS", "1"))

Answer = dict[str, float]


class Work(Protocol):
    """Classifies images."""

    def decode(self, data: bytes) -> Any:
        """Decode an image."""

    def classify(self, images: Sequence[Any]) -> list[Answer]:
        """Classify what was decoded; return the five likeliest labels of each."""


def work(gathers: bool = True) -> Work:
    """Return what BENCH_KIND asks for, and import nothing of the other: torch takes memory.

    Args:
        gathers: whether the server makes batches of what comes.
    """
    folder = Path("model")
    if os.environ.get("BENCH_KIND", "tutorial") == "engine":
        from bench.peers.engine import Engine

        return Engine(folder, THREADS, gathers)
    from bench.peers.tutorial import Tutorial

    return Tutorial(folder)
