"""Start TorchServe in the background, know that it serves what it should, and stop it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import requests

from . import config, java, log, management, releases, store
from .errors import ServerError

START_DEADLINE = 180.0  # seconds until every worker must be READY
STOP_DEADLINE = 30.0  # seconds until what still runs is killed
POLL = 0.2  # seconds
CONSOLE = "console.log"
"""What TorchServe and Java print: little, but all of it where they fail early."""


@dataclass(frozen=True)
class Place:
    """The files that one server is made of."""

    run: Path = Path("run")
    """Generated state: the configuration, logs and the process's identity."""
    model_store: Path = Path("model_store")
    releases: Path = Path("releases.toml")
    config: Path = Path("config.properties")
    model_config: Path = Path("model/model-config.yaml")

    @property
    def logs(self) -> Path:
        """The folder of TorchServe's logs."""
        return self.run / "logs"

    @property
    def state(self) -> Path:
        """The file that identifies the process that was started."""
        return self.run / "server.json"


class Server:
    """TorchServe, as releases.toml wants it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.releases = releases.read(place.releases)
        self.properties = config.read(place.config)
        self.inference = config.address(self.properties, "inference")
        self.management = management.Management(config.address(self.properties, "management"))

    def process(self) -> psutil.Process | None:
        """Return the server's process, or None where what was started runs no more."""
        state = self._state()
        try:
            process = psutil.Process(state["pid"])
            same = process.create_time() == state["created"]
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except (KeyError, psutil.NoSuchProcess):
            return None

    def start(self) -> None:
        """Start TorchServe and wait until it serves what releases.toml says.

        Raises:
            ServerError: it does not come to that; what was started is stopped again.
        """
        self.place.run.mkdir(parents=True, exist_ok=True)
        with (self.place.run / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ServerError(f"another start in {self.place.run} is under way") from None
            self._start()

    def _start(self) -> None:
        archives = self._archives()
        self._check_ports()
        self._clean()
        self._launch(archives)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def check(self) -> None:
        """Compare the running server with releases.toml and the archives.

        Raises:
            ServerError: it serves something else, with each difference.
        """
        found = management.differences(self.management, self.releases)
        served = self._state().get("archives", {})
        found += [
            f"{name} has changed since the server started"
            for name, sha256 in self._archives().items()
            if served.get(name, sha256) != sha256
        ]
        if found:
            raise ServerError(
                f"the server differs from {self.place.releases}: {'; '.join(found)}. "
                "`make stop` and `make serve` serve what is released"
            )

    def stop(self) -> bool:
        """Stop what `start` started, its workers too, and nothing else; False if none ran."""
        process = self.process()
        if process is not None:
            family = [process, *process.children(recursive=True)]
            process.terminate()
            _, alive = psutil.wait_procs(family, timeout=STOP_DEADLINE)
            for straggler in alive:
                straggler.kill()
            psutil.wait_procs(alive, timeout=STOP_DEADLINE)
        self._clean()
        return process is not None

    def predict(self, model: str, image: bytes) -> dict[str, float]:
        """Classify an image through the inference endpoint.

        Raises:
            ServerError: the answer is no answer.
        """
        url = f"{self.inference}/predictions/{model}"
        try:
            answer = requests.put(url, data=image, timeout=60)
        except requests.RequestException as error:
            raise ServerError(f"{url} gives no answer: {error}") from None
        if not answer.ok:
            raise ServerError(f"{url} answers {answer.status_code}: {answer.text}")
        labels: dict[str, float] = answer.json()
        return labels

    def _archives(self) -> dict[str, str]:
        """Check the released archives; return the sha256 of each, by file name."""
        found = {}
        for release in self.releases:
            for version in release.versions:
                path = store.find(self.place.model_store, f"{release.model}:{version}")
                store.check(path, release.model, version)
                found[path.name] = store.sha256(path)
        return found

    def _check_ports(self) -> None:
        """Fail where a port is taken: TorchServe itself would say so only in its log."""
        for key, fallback in config.ADDRESSES.items():
            url = urlsplit(self.properties.get(key, fallback))
            _check_port(url.hostname or "127.0.0.1", url.port or 80, key)
        for key, fallback in config.GRPC_PORTS.items():
            host = self.properties.get(key.replace("port", "address"), "127.0.0.1")
            _check_port(host, int(self.properties.get(key, fallback)), key)

    def _launch(self, archives: dict[str, str]) -> None:
        """Run `torchserve --start`, which leaves Java behind, and note which process that is."""
        java_home, remark = java.home()
        if remark:
            print(remark, file=sys.stderr)
        self._keep_last_logs()
        self.place.logs.mkdir()
        generated = self.place.run / "config.properties"
        generated.write_text(
            config.generate(
                self.properties,
                self.releases,
                self.place.model_store.resolve(),
                self.place.model_config,
            )
        )
        temporary = Path(tempfile.mkdtemp(prefix="torchserve-"))
        command = [sys.executable, "-m", "ts.model_server", "--start", "--ncs"]
        command += ["--ts-config", str(generated)]
        with (self.place.logs / CONSOLE).open("w") as output:
            subprocess.run(
                command,
                env=_environment(java_home, temporary, self.place.logs),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                check=False,
            )
        self._note(temporary, archives)

    def _keep_last_logs(self) -> None:
        """Put the logs of the last start aside: why this one fails must be read from its own."""
        if self.place.logs.exists():
            last = self.place.logs.with_name("logs.last")
            shutil.rmtree(last, ignore_errors=True)
            self.place.logs.rename(last)

    def _note(self, temporary: Path, archives: dict[str, str]) -> None:
        """Write down the process that TorchServe's launcher left its number of."""
        state: dict[str, Any] = {"temporary": str(temporary), "archives": archives}
        try:
            pid = int((temporary / ".model_server.pid").read_text())
            state |= {"pid": pid, "created": psutil.Process(pid).create_time()}
        except (OSError, ValueError, psutil.NoSuchProcess):
            pass  # it is gone already, as _wait will find and tell
        self.place.state.write_text(json.dumps(state))

    def _wait(self) -> None:
        deadline = time.monotonic() + START_DEADLINE
        found = ["it does not answer yet"]
        while found:
            if self.process() is None:
                raise ServerError(self._failure("TorchServe ended while it started"))
            with contextlib.suppress(requests.RequestException):  # not listening yet
                found = self._progress()
            if time.monotonic() > deadline:
                raise ServerError(self._failure(f"TorchServe is not ready: {'; '.join(found)}"))
            time.sleep(POLL if found else 0)

    def _progress(self) -> list[str]:
        """Return what is still to come; fail at once on what will not come."""
        failure = log.worker_failure(log.read(self.place.logs))
        if failure:
            raise ServerError(f"a worker can't start: {failure} (see {self.place.logs})")
        # Archives are registered before the management port opens: what is missing failed.
        missing = management.unregistered(self.management, self.releases)
        if missing:
            raise ServerError(self._failure(f"TorchServe refused {', '.join(missing)}"))
        return management.differences(self.management, self.releases)

    def _failure(self, what: str) -> str:
        """Return a message with the cause from the log."""
        console = (self.place.logs / CONSOLE).read_text(errors="replace")
        reason = log.cause(log.read(self.place.logs)) or " ".join(console.splitlines()[-3:])
        return f"{what}: {reason or 'no cause is logged'} (see {self.place.logs})"

    def _state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(self.place.state.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return state

    def _clean(self) -> None:
        """Remove what a server that runs no more has left."""
        temporary = self._state().get("temporary")
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
        self.place.state.unlink(missing_ok=True)


def _environment(java_home: Path, temporary: Path, logs: Path) -> dict[str, str]:
    """Return TorchServe's environment.

    PYTHONPATH would come before the archive's own files in a worker, and TS_CONFIG_FILE before
    the configuration that is asked for: neither is inherited.
    """
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TS_CONFIG_FILE")}
    return inherited | {
        "JAVA_HOME": str(java_home),
        "TMPDIR": str(temporary),
        "TEMP": str(temporary),
        "LOG_LOCATION": str(logs.resolve()),
        "METRICS_LOCATION": str(logs.resolve()),
    }


def _check_port(host: str, port: int, key: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServerError(
                f"{key}: port {port} on {host} can't be used ({error.strerror}): "
                "stop what listens there, or change it in config.properties"
            ) from None
