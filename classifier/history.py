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

from .errors import ReleasesError

if TYPE_CHECKING:
    from pathlib import Path


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
    who: str = field(default_factory=getpass.getuser)
    when: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    figures: dict[str, Any] = field(default_factory=dict)


def read(path: Path) -> list[Entry]:
    """Return all entries, oldest first.

    Raises:
        ReleasesError: a line is none.
    """
    if not path.exists():
        return []
    entries = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            entries.append(Entry(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ReleasesError(f"{path}, line {number} is no entry: {error}") from None
    return entries


def append(path: Path, entry: Entry) -> None:
    """Add an entry; it is on the disk when this returns."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def before_last(entries: list[Entry], model: str, default: str) -> str | None:
    """Return the version to which a rollback goes: the one before the default, or None.

    A rollback is itself an entry; what it left is not gone back to.
    """
    came_from: dict[str, str] = {}
    for entry in entries:
        if entry.model == model and entry.action == "promote":
            came_from[entry.after] = entry.before
    return came_from.get(default)
