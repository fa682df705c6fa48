"""Read out of TorchServe's log why it, or a worker, failed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE = "torchserve.log"
_LINE = re.compile(r"^\d{4}-\S+ (?P<level>[A-Z]+) +(?P<thread>.*?) (?P<logger>\S+) - (?P<text>.*)$")
_EXCEPTION = re.compile(r"^[\w.$]*(?:Error|Exception|Exit|Interrupt)\b.*")
_WORKER_DIED = "Backend worker process died."
"""A worker prints it, and then a traceback, when its handler can't be loaded."""
_LOAD_FAILED = "Load model failed"
_RETRIES = 4
"""After so many deaths without a word, of all workers of a start together, none is awaited."""


def read(folder: Path) -> str:
    """Return the text of the log, or nothing where there is none yet."""
    path = folder / FILE
    return path.read_text(errors="replace") if path.exists() else ""


def of_version(log: str, model: str, version: str) -> str:
    """Return what a log tells of the workers of one version; they have threads of their names."""
    thread = re.compile(rf"W-\d+-{re.escape(f'{model}_{version}')}(-std(out|err))?")
    lines, belongs = [], False
    for line in log.splitlines():
        if match := _LINE.match(line):
            belongs = thread.fullmatch(match["thread"]) is not None
        if belongs:
            lines.append(line)
    return "\n".join(lines)


def worker_failure(log: str) -> str | None:
    """Return why workers can't start, or None as long as they may."""
    _, died, rest = log.partition(_WORKER_DIED)
    if died:
        # The first exception is the cause: TorchServe hides a missing package behind a second one.
        return next((text for _, text in _lines(rest) if _EXCEPTION.match(text)), None)
    failures = [text for _, text in _lines(log) if text.startswith(_LOAD_FAILED)]
    return failures[-1] if len(failures) >= _RETRIES else None


def cause(log: str) -> str | None:
    """Return the last line that tells of an exception or an error, or None."""
    found = [
        text for level, text in _lines(log) if level in ("ERROR", "FATAL") or _EXCEPTION.match(text)
    ]
    return found[-1] if found else None


def _lines(log: str) -> Iterator[tuple[str, str]]:
    """Split a log into lines of level (none for a continuation) and text."""
    for line in log.splitlines():
        match = _LINE.match(line)
        yield (match["level"], match["text"]) if match else ("", line)
