"""Change which versions run, and lose no request meanwhile."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import httpx

from ..archiving import store
from ..errors import ClassifierError, ServerError
from . import log

if TYPE_CHECKING:
    from .config import Sizes
    from .management import Management
    from .server import Server

DEADLINE = 30.0  # seconds
POLL = 0.02  # seconds
LOAD_DEADLINE = 180.0  # seconds until new workers must be READY
LOAD_POLL = 0.2  # seconds
BATCH = 1.0
"""Seconds that a batch is given where the handler can't be asked: ours takes some 10 ms."""


def register(server: Server, model: str, version: str, sizes: Sizes) -> str:
    """Register a version of the model store, and wait until its workers are READY.

    Returns:
        The archive's sha256.

    Raises:
        ArchiveError: the archive is missing, damaged or another's.
        ServerError: TorchServe refuses it, or its workers can't start; it is not registered then.
    """
    management = server.management
    sha256 = server.archive_sha256(model, version)
    management.register(store.file_name(model, version), sizes)
    try:
        scale(server, model, version, sizes.workers)
    except BaseException:
        with contextlib.suppress(ClassifierError, httpx.TransportError):  # why it failed matters
            management.unregister(model, version)
        raise
    server.state.note_archive(store.file_name(model, version), sha256)
    return sha256


def scale(
    server: Server, model: str, version: str, workers: int, enough: int | None = None
) -> None:
    """Start workers of a version, and wait until it has so many, or `enough`, READY ones.

    Raises:
        ServerError: they can't start; the log tells why.
    """
    logged = len(log.read(server.place.logs))
    server.management.scale(model, version, workers)
    enough, end = enough or workers, time.monotonic() + LOAD_DEADLINE
    while sum(worker.is_ready for worker in server.management.workers(model, version)) < enough:
        text = log.read(server.place.logs)
        new = text[logged:] if len(text) >= logged else text  # it was rotated meanwhile
        told = log.of_version(new, model, version)
        failure = log.worker_failure(told)
        if failure is None and time.monotonic() > end:
            failure = f"they are not READY after {LOAD_DEADLINE:g} s"
        if failure is not None:
            raise ServerError(f"{model}:{version}: its workers can't start: {failure}")
        time.sleep(LOAD_POLL)


def retire(management: Management, model: str, version: str, deadline: float = DEADLINE) -> None:
    """Take a version out of service once nobody waits for it any more.

    Raises:
        ServerError: it is the default, it is not registered, or requests still wait for it.
    """
    if management.default(model) == version:
        raise ServerError(f"{model}:{version} is the default: make another the default first")
    if not wait_until_idle(management, model, version, deadline):
        raise ServerError(
            f"requests for {model}:{version} were still waiting after {deadline:g} s: it stays"
        )
    management.unregister(model, version)


def wait_until_idle(management: Management, model: str, version: str, deadline: float) -> bool:
    """Wait until every request that has come for a version is answered; False if it takes longer.

    TorchServe tells how many wait in the queue, but not how many are with a worker. So each
    worker is asked something: what it answers comes after all that waited before, and after what
    it had taken. Twice, for a request may be on its way into the queue at the first time.
    """
    end = time.monotonic() + deadline
    return all(_all_have_answered(management, model, version, end) for _ in range(2))


def _all_have_answered(management: Management, model: str, version: str, end: float) -> bool:
    to_answer = {w.pid for w in management.workers(model, version) if w.is_ready}
    if not to_answer:
        return _queue_is_empty(management, model, version, end)
    while to_answer:
        left = end - time.monotonic()
        if left <= 0:
            return False
        try:
            answered = management.ask_worker(model, version, timeout=left)
            if answered is None:
                return _queue_is_empty(management, model, version, end)
            if answered not in to_answer:
                time.sleep(POLL)  # the others are busy: leave them the processor
            to_answer.discard(answered)
        except httpx.TimeoutException:
            return False
        except ServerError:  # the queue is full, or a worker died: it answers nothing any more
            time.sleep(POLL)
            to_answer &= {w.pid for w in management.workers(model, version) if w.is_ready}
            if not to_answer:
                return _queue_is_empty(management, model, version, end)
    return True


def _queue_is_empty(management: Management, model: str, version: str, end: float) -> bool:
    """Wait until nothing is in a version's queue, and for what its workers may have taken."""
    while management.pending(model, version):
        if time.monotonic() > end:
            return False
        time.sleep(POLL)
    time.sleep(BATCH)
    return True
