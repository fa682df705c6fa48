"""Whether a server can answer: not what it says of itself, but a real prediction of each version.

TorchServe's own /ping says Healthy over models whose workers are dead or still loading.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING

import httpx

from ..errors import ClassifierError, ServerError
from . import answered, config
from .warmup import HEADERS, blank

if TYPE_CHECKING:
    from .server import Server

TIMEOUT = 10.0
"""Seconds within which a prediction must come."""
FRESH = 1.0
"""Seconds for which a finding is told again: those who ask often cost no more predictions."""


class Readiness:
    """Finds out whether a server is ready; may be asked by several threads."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._http = httpx.Client(
            base_url=server.inference, auth=server.auth(), timeout=TIMEOUT, trust_env=False
        )
        weakref.finalize(self, self._http.close)
        self._metrics = config.address(server.properties, "metrics")
        self._image = blank()
        self._answered: dict[tuple[str, str], set[int]] = {}
        self._lock = threading.Lock()
        self._found: tuple[float, list[str]] | None = None

    def reasons(self) -> list[str]:
        """Return what keeps the server from being ready, in words; nothing where it is."""
        if self._server.is_draining:
            return ["it is about to stop"]
        with self._lock:
            if self._found is None or time.monotonic() - self._found[0] > FRESH:
                found = self._look()
                self._found = (time.monotonic(), found)
            return self._found[1]

    def _look(self) -> list[str]:
        if self._server.process() is None:
            return ["TorchServe does not run"]
        try:
            return [
                reason
                for release in self._server.served
                for version in release.versions
                if (reason := self._look_at_version(release.model, version)) is not None
            ]
        except httpx.TransportError as error:
            return [f"TorchServe does not answer: {error or type(error).__name__}"]
        except ClassifierError as error:
            return [str(error)]

    def _look_at_version(self, model: str, version: str) -> str | None:
        """Ask a version for a prediction, if it has a worker to give it."""
        name, key = f"{model}:{version}", (model, version)
        try:
            listed = self._server.management.workers(model, version)
        except ServerError as error:
            return str(error)
        ready = {worker.pid for worker in listed if worker.is_ready}
        self._answered[key] = self._answered.get(key, set()) & ready
        if not ready:
            return f"{name} has no READY worker"
        before = answered.batches(self._metrics, model, version)
        try:
            answer = self._http.put(
                f"/predictions/{model}/{version}", content=self._image, headers=HEADERS
            )
        except httpx.ReadTimeout:
            # A long queue is a lot of work, too, where those before get their answers.
            if self._answered[key] and answered.batches(self._metrics, model, version) > before:
                return None
            raise
        if answer.is_success:
            self._answered[key] = ready
        # A full queue is a lot of work, and no failure, of workers that have answered before.
        elif answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or not self._answered[key]:
            return f"{name} answers {answer.status_code}: {' '.join(answer.text.split())[:200]}"
        return None
