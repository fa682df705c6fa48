"""Run TorchServe's own command: what it reads, in which environment, and where it prints."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..errors import ServerError
from . import config, java
from .releases import copy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..place import Place
    from .config import Properties
    from .releases import Release

LONGEST_TEMPORARY_ROOT = 107 - len("/torchserve-12345678/.ts.sock.12345")
CONSOLE = "console.log"
"""What TorchServe and Java print before there is a log: no more, for nothing rotates it."""
CONSOLE_LEVEL = "CLASSIFIER_CONSOLE"
"""The environment variable that tells deploy/log4j2.xml from which level on to print, too."""


def check_ports(properties: Properties) -> None:
    """Fail where a port is taken: TorchServe itself would say so only in its log.

    Raises:
        ServerError: one is.
    """
    for key, fallback in config.ADDRESSES.items():
        url = urlsplit(properties.get(key, fallback))
        _check_port(url.hostname or "127.0.0.1", url.port or 80, key)
    for key, fallback in config.GRPC_PORTS.items():
        host = properties.get(key.replace("port", "address"), "127.0.0.1")
        _check_port(host, int(properties.get(key, fallback)), key)


def check_run(place: Place) -> None:
    """Fail where what is generated would overwrite what somebody has written.

    Raises:
        ServerError: it would.
    """
    given = place.generated
    is_ours = not given.exists() or given.read_text(errors="replace").startswith(config.HEAD)
    if not is_ours or place.served.resolve() == place.releases.resolve():
        raise ServerError(
            f"{place.run} holds files of yours that would be overwritten (config.properties or "
            "releases.toml): let --run name a folder for what is generated, such as run"
        )


def prepare(place: Place, properties: Properties, releases: Sequence[Release]) -> None:
    """Write what TorchServe reads, and put aside what it wrote at its last start."""
    last = place.logs.with_name("logs.last")
    for folder in (place.logs, last, place.working):
        folder.mkdir(parents=True, exist_ok=True)
    place.working.chmod(0o700)  # TorchServe makes the tokens' file for all to read, then closes it
    place.tokens.unlink(missing_ok=True)
    _move(last, None)
    _move(place.logs, last)  # why this start fails must be read from its own
    _move(place.working, last)  # as what Java writes of a crash
    store = place.model_store.resolve()
    told = properties | {"vmargs": _vmargs(place, properties)}
    text = config.generate(told, releases, store, place.model_config, place.working)
    place.generated.write_text(text)
    workers = {release.model: config.workers(release) for release in releases}
    copy(place.releases, place.served, workers)


def _vmargs(place: Place, properties: Properties) -> str:
    """Return what config.properties tells Java, and what the packaged one is told besides."""
    given = properties.get("vmargs", "")
    java_home, _ = java.home()
    return " ".join([given, *java.options(java_home, given, place.working)]).strip()


def _move(folder: Path, to: Path | None) -> None:
    """Move what a folder holds to another one, or away; the folder may be a volume or a link."""
    for path in folder.iterdir():
        if path.name == "lost+found":  # of a volume itself
            continue
        if to is not None:
            shutil.move(path, to / path.name)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def temporary_folder() -> Path:
    """Make the folder for TorchServe's temporary files, its workers' sockets among them.

    The path of a socket has 107 bytes at most.
    """
    usual = tempfile.gettempdir()
    is_long = len(os.fsencode(usual)) > LONGEST_TEMPORARY_ROOT
    root = "/tmp" if is_long else usual  # noqa: S108
    return Path(tempfile.mkdtemp(prefix="torchserve-", dir=root))


def run(place: Place, releases: Sequence[Release], temporary: Path, to_stdout: bool) -> None:
    """Run `torchserve --start`, which ends at once and leaves Java behind.

    Args:
        place: what `prepare` has made ready.
        releases: what is served.
        temporary: what `temporary_folder` has made; TorchServe writes there which process it is.
        to_stdout: whether what TorchServe and Java print goes to stdout, or else to CONSOLE.
    """
    command = [sys.executable, "-m", "ts.model_server", "--start", "--ncs"]
    command += ["--ts-config", str(place.generated.resolve())]
    environment = _environment(place, releases, temporary)
    environment[CONSOLE_LEVEL] = "info" if to_stdout else "off"
    console = None if to_stdout else (place.logs / CONSOLE).open("w")
    with console or contextlib.nullcontext():
        subprocess.run(
            command,
            cwd=place.working,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            check=False,
        )


def _environment(place: Place, releases: Sequence[Release], temporary: Path) -> dict[str, str]:
    """Return TorchServe's environment.

    PYTHONPATH would come before the archive's own files in a worker, and TS_CONFIG_FILE before
    the configuration that is asked for: neither is inherited.
    """
    java_home, remark = java.home()
    if remark:
        print(remark, file=sys.stderr)
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TS_CONFIG_FILE")}
    own = {
        "JAVA_HOME": str(java_home),
        "TMPDIR": str(temporary),
        "TEMP": str(temporary),
        "LOG_LOCATION": str(place.logs.resolve()),
        "METRICS_LOCATION": str(place.logs.resolve()),
        "LC_ALL": "C.UTF-8",  # by which Java reads the names of files
    }
    told = config.threads(releases, place.model_config) | config.keeping(releases, place.traffic)
    return inherited | own | told


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
