"""Watches over a TorchServe that runs: tells whether it is ready, and revives what it gave up.

    GET /ready   200 where each version that is released can answer, else 503; both with reasons
    GET /live    200 while TorchServe runs, else 503
    GET /metrics TorchServe's metrics: those who may not reach its own port get no more than these

TorchServe starts a worker that failed again and again, but only for `maxRetryTimeoutInSec`; then
it gives up without a word, takes requests for it nevertheless, and lets them wait for ever. No
request starts such a worker again; only more workers than are listed, or none and then new ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import asdict
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import httpx

from .. import process
from ..errors import ClassifierError, ServerError
from ..place import Place
from . import config, journal
from .readiness import Readiness
from .server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .management import Management

PERIOD = 2.0  # seconds between looks at the workers
POLL = 0.1  # seconds
MOST = 3
"""Times as many workers as wanted that may be in TorchServe's list, the dead with the living."""
LAST_TRY = 1.5
"""TorchServe tries for the last time at up to so many times `maxRetryTimeoutInSec`: its pauses
grow, and one that began in time ends after it."""
METRICS_TIMEOUT = 5.0  # seconds
REPLACE_DEADLINE = 60.0  # seconds until dead workers are out of the list
MOST_CONNECTIONS = 64
"""Connections at once: a client that never ends its request must not cost more than one each."""
LOG = "monitor.log"
LOG_BYTES = 1_000_000
CONSOLE = "monitor-console.log"
"""What it prints: nothing, unless it fails."""

log = logging.getLogger("monitor")
T = TypeVar("T")


class Reviver:
    """Notices workers that TorchServe has given up, and gets others in their place."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._short_since: dict[tuple[str, str], tuple[float, int]] = {}

    def looks(self) -> Iterator[Callable[[], None]]:
        """Yield what looks at each version once.

        Raises:
            httpx.TransportError, ServerError: TorchServe does not answer, or refuses.
        """
        for release in self._server.served:
            for version in release.versions:
                yield partial(self._look_at, release.model, version, config.workers(release))

    def _look_at(self, model: str, version: str, wanted: int) -> None:
        management, key = self._server.management, (model, version)
        workers = management.workers(model, version)
        ready = sum(worker.is_ready for worker in workers)
        if ready >= wanted:
            if self._short_since.pop(key, None) is not None:
                log.info("%s:%s has %d READY workers again", model, version, ready)
            return
        now = time.monotonic()
        if key not in self._short_since:
            log.warning("%s:%s has %d of %d workers READY", model, version, ready, wanted)
        since, before = self._short_since.get(key, (now, ready))
        if ready > before:  # some come back: TorchServe has not given up
            since = now
        self._short_since[key] = (since, ready)
        window = management.describe(model, version)["maxRetryTimeoutInSec"]
        if now - since > LAST_TRY * window:
            log.warning("%s:%s: TorchServe has given up; new workers start", model, version)
            _replace(management, model, version, len(workers), ready, wanted)
            self._short_since[key] = (now, ready)


def _replace(
    management: Management, model: str, version: str, listed: int, ready: int, wanted: int
) -> None:
    """Start new workers for those that were given up; those that work go on meanwhile.

    The dead stay in TorchServe's list for as long as one lives; if they are many, all are replaced.
    """
    if ready and listed < MOST * wanted:
        management.scale(model, version, listed + wanted - ready)
        return
    end = time.monotonic() + REPLACE_DEADLINE
    try:
        management.scale(model, version, 0)
        while management.workers(model, version) and time.monotonic() < end:
            time.sleep(POLL)
    finally:
        management.scale(model, version, wanted)


class _Handler(BaseHTTPRequestHandler):
    """Answers who asks whether the server is ready."""

    readiness: Readiness
    watched: Server
    timeout = 30

    def do_GET(self) -> None:
        if self.path == "/ready":
            self._answer(self.readiness.reasons())
        elif self.path == "/live":
            running = self.watched.process() is not None
            self._answer([] if running else ["TorchServe does not run"])
        elif self.path == "/metrics":
            self._pass_metrics_on()
        else:
            self.send_error(HTTPStatus.NOT_FOUND, "ask for /ready, /live or /metrics")

    def _pass_metrics_on(self) -> None:
        url = config.address(self.watched.properties, "metrics") + "/metrics"
        try:
            answer = httpx.get(url, timeout=METRICS_TIMEOUT, trust_env=False)
        except httpx.TransportError:
            self.send_error(HTTPStatus.BAD_GATEWAY, "TorchServe gives no metrics")
            return
        self._send(answer.status_code, answer.headers["Content-Type"], answer.content)

    def _answer(self, reasons: list[str]) -> None:
        status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
        body = json.dumps({"ready": not reasons, "reasons": reasons}).encode() + b"\n"
        self._send(status, "application/json", body)

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # whoever asked has gone
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing of each request."""


def start(place: Place) -> int:
    """Start a monitor in the background; return its process.

    Raises:
        ServerError: it can't be started.
    """
    command = [sys.executable, "-m", __name__, json.dumps(asdict(place), default=str)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise ServerError(f"the monitor can't start: {(done.stderr.splitlines() or ['?'])[-1]}")
    return int(done.stdout)


def main() -> None:
    """Go into the background, print the process, and watch until it is ended."""
    told: dict[str, Any] = json.loads(sys.argv[1])
    warm_up = float(told.pop("warm_up"))
    place = Place(**{name: Path(path) for name, path in told.items()}, warm_up=warm_up)
    server = Server(place)
    endpoint = _endpoint(server)  # here, so that a taken port is told to who starts it
    if pid := os.fork():
        print(pid)
        return
    os.setsid()
    with (place.logs / CONSOLE).open("w") as console:
        for stream in (1, 2):
            os.dup2(console.fileno(), stream)
    _log_to(place.logs / LOG)
    _keep(server.state.temporary)
    threading.Thread(target=endpoint.serve_forever, daemon=True).start()
    _watch(server)


def _keep(folder: Path | None) -> None:
    """Keep a folder's files from systemd, for as long as this process lives.

    It deletes what lay unread in /tmp for ten days, as unpacked archives do; not what is locked.
    """
    if folder is not None:
        fcntl.flock(os.open(folder, os.O_RDONLY | os.O_DIRECTORY), fcntl.LOCK_SH)


class _Endpoint(ThreadingHTTPServer):
    """Listens at readiness_address; where too many ask, who has asked for longest is let go."""

    def __init__(self, *told: Any) -> None:
        super().__init__(*told)
        self._connections: deque[Any] = deque()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, and end the oldest connection if these are too many."""
        self._connections.append(request)
        if len(self._connections) > MOST_CONNECTIONS:
            with contextlib.suppress(OSError):  # it has ended since
                self._connections.popleft().shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, answered or not."""
        with contextlib.suppress(ValueError):  # it was the oldest
            self._connections.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Log a connection that broke; by default it is printed, and nothing rotates CONSOLE."""
        log.info("a connection broke: %r", sys.exception())


def _endpoint(server: Server) -> _Endpoint:
    """Listen at readiness_address."""
    address = urlsplit(config.listening(server.properties, "readiness"))
    told = {"readiness": Readiness(server), "watched": server}
    where = (address.hostname or "127.0.0.1", address.port or 80)
    return _Endpoint(where, type("Handler", (_Handler,), told))


def _watch(server: Server) -> None:
    reviver, own = Reviver(server), process.identity(os.getpid())
    while server.place.run.exists() and server.state.monitor in (None, own):  # else nobody needs it
        time.sleep(PERIOD)
        if server.process() is None or server.is_draining:
            continue
        _try(partial(_recover, server))
        for look in _try(lambda: [*reviver.looks()]) or ():
            _try(look)  # by itself: that one version is gone is no reason to leave the others


def _try(what: Callable[[], T]) -> T | None:
    """Do something; whatever becomes of it, the monitor goes on."""
    try:
        return what()
    except (httpx.TransportError, ClassifierError) as error:
        log.warning("TorchServe: %s", error or type(error).__name__)
    except Exception:
        log.exception("the monitor failed")
    return None


def _recover(server: Server) -> None:
    if done := journal.recover(server):
        log.warning(done)


def _log_to(path: Path) -> None:
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        handlers=[RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=1)],
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)


if __name__ == "__main__":
    main()
