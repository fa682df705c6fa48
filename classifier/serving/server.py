"""Start TorchServe in the background, know that it serves what it should, and stop it."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import httpx

from .. import atomic, process, tokens
from ..archiving import archive, store
from ..errors import ArchiveError, ClassifierError, ReleasesError, ServerError
from ..predicting.client import Client
from ..tokens import Kind, TokenAuth
from . import config, history, launch, log, management, releases, rollout
from .state import State
from .warmup import CONNECTIONS, warm_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psutil

    from ..place import Place
    from .releases import Release

START_DEADLINE = 180.0  # seconds until every worker must be READY
STOP_DEADLINE = 30.0  # seconds until what still runs is killed
POLL = 0.2  # seconds
READINESS_TIMEOUT = 30.0  # seconds
MONITOR_DEADLINE = 30.0  # seconds until the monitor must have found the server ready


class Server:
    """TorchServe, as releases.toml wants it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.state = State(place.state)

    @property
    def releases(self) -> list[Release]:
        """What releases.toml says now.

        Where it is silent on workers, a running server shall have as many as at its start:
        whoever asks may have other cores.
        """
        told = releases.read(self.place.releases)
        if self.process() is None:
            return told
        started = {release.model: release.workers for release in self.served}
        return [replace(r, workers=r.workers or started.get(r.model)) for r in told]

    def release(self, model: str) -> Release:
        """Return what releases.toml says of a model.

        Raises:
            ReleasesError: it has no table of that model.
        """
        for release in self.releases:
            if release.model == model:
                return release
        raise ReleasesError(f"{self.place.releases} has no table [{model}]")

    @property
    def served(self) -> list[Release]:
        """What the running server was told to serve: releases.toml may say more by now."""
        there = self.place.served.exists()
        return releases.read(self.place.served if there else self.place.releases)

    @cached_property
    def properties(self) -> config.Properties:
        """What the running server was started with, and else what config.properties says."""
        runs = self.process() is not None
        return config.read(self.place.generated if runs else self.place.config)

    @cached_property
    def inference(self) -> str:
        """URL of the inference API."""
        return config.address(self.properties, "inference")

    @cached_property
    def management(self) -> management.Management:
        """The management API."""
        url = config.address(self.properties, "management")
        return management.Management(url, self.token(Kind.MANAGEMENT))

    @property
    def readiness(self) -> str:
        """URL at which the monitor tells whether the server is ready."""
        return config.address(self.properties, "readiness") + "/ready"

    @property
    def is_draining(self) -> bool:
        """Whether it is about to stop; if who said so was killed, it is not."""
        try:
            return process.find(self.place.draining.read_text() or None) is not None
        except FileNotFoundError:
            return False

    def token(self, kind: Kind) -> Callable[[], str] | None:
        """Return what gives the current token of an API, or None where it wants none."""
        if self.properties.get("disable_token_authorization", "").lower() == "true":
            return None
        url = config.address(self.properties, "management")
        return tokens.source(self.place.tokens, kind, url)

    def archive_sha256(self, model: str, version: str) -> str:
        """Return the sha256 of an archive, once it is found to be whole.

        Raises:
            ArchiveError: it is missing, damaged or another's.
        """
        path = store.find(self.place.model_store, f"{model}:{version}")
        store.check(path, model, version)
        return store.sha256(path)

    def promoted(self, model: str, version: str) -> str | None:
        """Return the sha256 with which an archive became the default; None if it never did.

        None of the released weights, too: their archive is built anew where the project's code
        changes.
        """
        if (model, version) == (archive.MODEL, archive.VERSION):
            return None
        return history.sha256(history.read(self.place.history), model, version)

    def auth(self) -> TokenAuth | None:
        """Return what lets httpx send the inference API's token; None where it wants none."""
        token = self.token(Kind.INFERENCE)
        return TokenAuth(token) if token else None

    def authorization(self) -> dict[str, str]:
        """Return the headers that the inference API wants now."""
        token = self.token(Kind.INFERENCE)
        return {"Authorization": f"Bearer {token()}"} if token else {}

    def client(
        self,
        model: str,
        on_retry: Callable[[str], None] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Client:
        """Return a client of the inference API."""
        token = self.token(Kind.INFERENCE)
        return Client(
            self.inference, model, token, on_retry=on_retry, headers=headers, trust_env=False
        )

    def process(self) -> psutil.Process | None:
        """Return the server's process, or None where what was started runs no more."""
        return process.find(self.state.torchserve)

    @contextlib.contextmanager
    def lock(self, patience: float = 0) -> Iterator[None]:
        """Keep others from starting or stopping this server meanwhile.

        Args:
            patience: seconds to wait until others have done so.

        Raises:
            ServerError: another start or stop is under way.
        """
        where = self.place.run
        refusal = f"another start or stop in {where} is under way"
        with process.exclusive(where / "lock", refusal, patience):
            yield

    def start(self, to_stdout: bool = False) -> None:
        """Start TorchServe and wait until it serves what releases.toml says.

        Args:
            to_stdout: whether what TorchServe and Java print goes to stdout, or else to a file.

        Raises:
            ServerError: it does not come to that; what was started is stopped again. Or the run
                folder holds files that somebody has written.
            ArchiveError: an archive is missing or damaged.
        """
        launch.check_run(self.place)
        archives = self._archives()
        self._check_promoted(archives)
        self._clean()
        launch.check_ports(self.properties)
        try:
            self._launch(archives, to_stdout)
            self._wait()
            self.warm_up(self.place.warm_up)
            self._watch()
        except BaseException:
            self._end()
            raise

    def warm_up(self, seconds: float, connections: int = CONNECTIONS) -> None:
        """Let Java compile what a request runs: without that, the first seconds are slow.

        Args:
            seconds: for which all models together are asked.
            connections: how many ask at once.

        Raises:
            ServerError: it does not answer.
        """
        told = self.releases
        for release in told:
            url = f"{self.inference}/predictions/{release.model}"
            warm_up(url, seconds / len(told), self.authorization(), connections)

    def check(self) -> None:
        """Compare the running server with releases.toml and the archives.

        Raises:
            ServerError: it serves something else, with each difference, or does not answer.
            ArchiveError: an archive is not the one that was promoted: a restart would be refused.
        """
        try:
            found = management.differences(self.management, self.releases)
        except httpx.TransportError as error:
            raise ServerError(f"the server runs, but does not answer: {error}") from None
        archives = self._archives()
        self._check_promoted(archives)
        changed = self.state.changed(archives)
        found += [f"{name} has changed since the server started" for name in changed]
        if process.find(self.state.monitor) is None:
            found.append("its monitor has ended")
        if found:
            raise ServerError(
                f"the server differs from {self.place.releases}: {'; '.join(found)}. "
                "`make stop` and `make serve` serve what is released"
            )

    def unready(self) -> list[str]:
        """Return what keeps it from being ready, as its monitor says; nothing where it is."""
        if self.process() is None:
            return ["TorchServe does not run"]
        try:
            answer = httpx.get(self.readiness, timeout=READINESS_TIMEOUT, trust_env=False)
        except httpx.TransportError as error:
            return [f"its monitor does not answer: {error or type(error).__name__}"]
        try:
            reasons: list[str] = answer.json()["reasons"]
        except (ValueError, TypeError, KeyError):
            return [f"what answers at {self.readiness} is not its monitor"]
        return reasons

    def stop(self, grace: float = 0, deadline: float = STOP_DEADLINE) -> bool:
        """Stop what `start` started and nothing else, once its clients have their answers.

        Args:
            grace: seconds in which it is not ready but still answers, so that a load balancer
                notices and sends no more.
            deadline: seconds until requests that are not yet answered are given up.

        Returns:
            False if none ran.
        """
        running = self.process() is not None
        if running:
            try:
                with contextlib.suppress(OSError):  # a full disk: it is not told, but done
                    atomic.write(self.place.draining, process.identity(os.getpid()) or "")
                time.sleep(grace)
                self._drain(deadline)
            except BaseException:  # as by Ctrl-C: it goes on
                self.place.draining.unlink(missing_ok=True)
                raise
        self._end()
        return running

    def _drain(self, deadline: float) -> None:
        """Wait until the requests that have come are answered: TorchServe itself drops them."""
        end, unanswerable = time.monotonic() + deadline, (httpx.TransportError, ClassifierError)
        registered: list[tuple[str, str]] = []
        with contextlib.suppress(*unanswerable):
            registered = list(self.management.registered())
        for model, version in registered:
            with contextlib.suppress(*unanswerable):  # one that is gone meanwhile has no requests
                rollout.wait_until_idle(self.management, model, version, end - time.monotonic())

    def _end(self) -> None:
        """End TorchServe, its workers and its monitor."""
        running = self.process()
        if running is not None:
            process.end(running, STOP_DEADLINE)
        self._clean()

    def _archives(self) -> dict[str, str]:
        """Check the released archives; return the sha256 of each, by file name."""
        return {
            store.file_name(release.model, version): self.archive_sha256(release.model, version)
            for release in self.releases
            for version in release.versions
        }

    def _check_promoted(self, archives: dict[str, str]) -> None:
        """Check that what was promoted is what would be served.

        Raises:
            ArchiveError: an archive holds other bytes than when it became the default.
        """
        served = {(release.model, v) for release in self.releases for v in release.versions}
        for model, version in sorted(served):
            name = store.file_name(model, version)
            promoted = self.promoted(model, version)
            if promoted not in (None, archives[name]):
                raise ArchiveError(
                    f"{name} is not the archive that was promoted (its sha256 is "
                    f"{archives[name]}, {self.place.history} says {promoted}): bring that back, "
                    "or build this one under another version, and promote that"
                )

    def _launch(self, archives: dict[str, str], to_stdout: bool) -> None:
        """Run TorchServe's command, and note where it will say which process it is."""
        launch.prepare(self.place, self.properties, self.releases)
        temporary = launch.temporary_folder()
        self.state.begin(temporary, archives)
        launch.run(self.place, self.releases, temporary, to_stdout)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_DEADLINE
        found = ["it does not answer"]
        while found:
            if self.process() is None:
                raise ServerError(self._failure("TorchServe ended while it started"))
            try:
                found = self._progress()
            except httpx.ConnectError:
                pass  # not listening yet
            except httpx.TransportError as error:
                found = [f"it does not answer: {error}"]
            if found and time.monotonic() > deadline:
                raise ServerError(self._failure(f"TorchServe is not ready: {'; '.join(found)}"))
            time.sleep(POLL if found else 0)

    def _watch(self) -> None:
        """Start the monitor, and wait until it says that the server is ready."""
        from . import monitor  # which imports this module

        self.state.note_monitor(monitor.start(self.place))
        end = time.monotonic() + MONITOR_DEADLINE
        while True:
            if not (reasons := self.unready()):
                return
            if time.monotonic() > end:
                raise ServerError(f"the server is not ready: {'; '.join(reasons)}")
            time.sleep(POLL)

    def _progress(self) -> list[str]:
        """Return what is still to come; fail at once on what will not come."""
        failure = log.worker_failure(log.read(self.place.logs))
        if failure:
            raise ServerError(f"a worker can't start: {failure} (see {self.place.logs})")
        if self.token(Kind.MANAGEMENT) and not self.place.tokens.exists():
            return ["it has made no tokens yet"]
        # Archives are registered before the management port opens: what is missing failed.
        missing = management.unregistered(self.management.registered(), self.releases)
        if missing:
            raise ServerError(self._failure(f"TorchServe refused {', '.join(missing)}"))
        return management.differences(self.management, self.releases)

    def _failure(self, what: str) -> str:
        """Return a message with the cause from the log."""
        console = self.place.logs / launch.CONSOLE
        printed = console.read_text(errors="replace").splitlines() if console.exists() else []
        reason = log.cause(log.read(self.place.logs)) or " ".join(printed[-3:])
        return f"{what}: {reason or 'no cause is logged'} (see {self.place.logs})"

    def _clean(self) -> None:
        """Remove what a server that runs no more has left, its monitor too."""
        monitor = process.find(self.state.monitor)
        if monitor is not None:
            process.end(monitor, STOP_DEADLINE)
        if self.state.temporary:
            shutil.rmtree(self.state.temporary, ignore_errors=True)
        self.state.remove()
        self.place.draining.unlink(missing_ok=True)
