"""Read out of TorchServe's log why it, or a worker, failed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_HEAD = re.compile(r"^\S+ (?P<level>[A-Z]+) +(?P<logger>\S+) - (?P<text>.*)$")
_EXCEPTION = re.compile(r"^[\w.$]*(?:Error|Exception)\b.*")
WORKER_DIED = "Backend worker process died."
"""What a worker prints when its handler can't be loaded."""


def read(folder: Path) -> str:
    """Return the text of the log, or nothing where there is none yet."""
    path = folder / "torchserve.log"
    return path.read_text(errors="replace") if path.exists() else ""


def cause(log: str) -> str | None:
    """Return the line that tells best why something failed: an exception, or an error."""
    lines = log.splitlines()
    exceptions, errors = [], []
    for line in lines:
        head = _HEAD.match(line)
        text = head["text"] if head else line
        if _EXCEPTION.match(text):
            exceptions.append(text)
        elif head and head["level"] in ("ERROR", "FATAL"):
            errors.append(text)
    found = exceptions[-1:] or errors[-1:]
    return found[0] if found else None
