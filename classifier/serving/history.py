"""The history of releases: who made which version the default, when, and by which figures.

It lies beside releases.toml, one line of JSON for each change, the last at the end.
"""

from __future__ import annotations

import getpass
import json
import os
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from .. import atomic
from ..errors import ReleasesError

if TYPE_CHECKING:
    from pathlib import Path


def _user() -> str:
    """Return who this is: by number where the number has no name, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the second from Python 3.13 on
        return str(os.getuid())


@dataclass(frozen=True)
class Entry:
    """One change of a default.

    Attributes:
        action: `promote` or `rollback`.
        model: whose default changed.
        before, after: versions.
        who: the user.
        when: UTC, by ISO 8601.
        figures: what was measured before the change.
    """

    action: str
    model: str
    before: str
    after: str
    who: str = field(default_factory=_user)
    when: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    figures: dict[str, Any] = field(default_factory=dict)


def read(path: Path) -> list[Entry]:
    """Return all entries, oldest first.

    Raises:
        ReleasesError: a line is none.
    """
    entries = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            entries.append(Entry(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ReleasesError(f"{path}, line {number} is no entry: {error}") from None
    return entries


def append(path: Path, entry: Entry) -> None:
    """Add an entry, or nothing at all where that fails; it is on the disk when this returns."""
    lines = [*_lines(path), json.dumps(asdict(entry), ensure_ascii=False)]
    atomic.write(path, "".join(f"{line}\n" for line in lines))


def sha256(entries: list[Entry], model: str, version: str) -> str | None:
    """Return the sha256 of the archive by which a version last became the default, or None."""
    found = [e.figures.get("sha256") for e in entries if (e.model, e.after) == (model, version)]
    return found[-1] if found else None


def before_last(entries: list[Entry], model: str, default: str) -> str | None:
    """Return the version to which a rollback goes: the one before the default, or None.

    A rollback is itself an entry; what it left is not gone back to.
    """
    came_from: dict[str, str] = {}
    for entry in entries:
        if entry.model == model and entry.action == "promote":
            came_from[entry.after] = entry.before
    return came_from.get(default)


def _lines(path: Path) -> list[str]:
    """Return the lines of a history: none where there is no file."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [line for line in text.split("\n") if line]
