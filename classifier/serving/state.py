"""What is noted of a server that was started, for whoever asks later: run/server.json."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from .. import atomic, process


class State:
    """The note of one server: its processes, its temporary files, and what it serves.

    Args:
        path: of the file; it is there from the start of a server to its end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def torchserve(self) -> str | None:
        """The identity of TorchServe's process; None where nothing is noted."""
        identity: str | None = self._read().get("identity")
        return identity

    @property
    def monitor(self) -> str | None:
        """The identity of the monitor's process; None where none is noted."""
        identity: str | None = self._read().get("monitor")
        return identity

    @property
    def temporary(self) -> Path | None:
        """The folder of TorchServe's temporary files; None where nothing is noted."""
        folder = self._read().get("temporary")
        return None if folder is None else Path(folder)

    def begin(self, temporary: Path, archives: dict[str, str]) -> None:
        """Note a start.

        Args:
            temporary: the folder in which TorchServe will tell which process it is.
            archives: the sha256 of each archive that is served, by file name.
        """
        self._write({"temporary": str(temporary), "archives": archives})

    def note_monitor(self, pid: int) -> None:
        """Note which process the monitor is."""
        self._write(self._read() | {"monitor": process.identity(pid)})

    def note_archive(self, name: str, sha256: str) -> None:
        """Note which bytes of an archive are served, too, by its file name."""
        state = self._read()
        if state:  # else somebody has stopped the server meanwhile
            state.setdefault("archives", {})[name] = sha256
            self._write(state)

    def changed(self, archives: dict[str, str]) -> list[str]:
        """Return which archives, by file name, hold other bytes than when they were loaded.

        Args:
            archives: the sha256 of each, as the store has it now.
        """
        noted = self._read().get("archives", {})
        return [name for name, sha256 in archives.items() if noted.get(name, sha256) != sha256]

    def remove(self) -> None:
        """Forget the server."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        """Return what is noted; which process TorchServe is, once it has told."""
        try:
            state: dict[str, Any] = json.loads(self._path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        if "pid" not in state:
            with contextlib.suppress(OSError, ValueError):
                pid = int((Path(state["temporary"]) / ".model_server.pid").read_text())
                state |= {"pid": pid, "identity": process.identity(pid)}
                self._write(state)
        return state

    def _write(self, state: dict[str, Any]) -> None:
        atomic.write(self._path, json.dumps(state))
