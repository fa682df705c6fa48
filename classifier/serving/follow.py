"""Follow a log file: copy to a stream what is appended to it."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import IO, TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

PERIOD = 0.2
"""Seconds between looks at the file."""


class Follower:
    """Copies whole lines of a file to a stream, from a thread, for as long as a `with` lasts.

    Args:
        path: the file. It need not be there yet, and may be replaced by another of its name, as
            rotation does; of one that is there, only what comes from now on is copied.
        stream: takes the lines. One that is closed ends the copying, and is no error.
    """

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self._file, self._stream = _File(path), stream
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        self._file.close()

    def _follow(self) -> None:
        with contextlib.suppress(OSError):  # nobody reads the stream any more
            while not self._done.wait(PERIOD):
                self._copy()
            self._copy()  # what was written last

    def _copy(self) -> None:
        if lines := self._file.new_lines():
            self._stream.write(lines)
            self._stream.flush()


class _File:
    """One file that is followed by its name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._begun = b""
        with contextlib.suppress(FileNotFoundError):
            self._file = path.open("rb")
            self._file.seek(0, os.SEEK_END)

    def new_lines(self) -> bytes:
        """Return the lines that were completed since the last call."""
        data = self._begun + self._read()
        with contextlib.suppress(FileNotFoundError):
            if self._file is None or not os.path.samestat(
                os.fstat(self._file.fileno()), self._path.stat()
            ):
                data += self._read()  # the last of the old file
                self.close()
                self._file = self._path.open("rb")
                data += self._read()
        lines, newline, self._begun = data.rpartition(b"\n")
        return lines + newline

    def _read(self) -> bytes:
        return self._file.read() if self._file else b""

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()
