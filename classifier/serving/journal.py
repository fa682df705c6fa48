"""The journal of a change of the default: which way to go on, should who changes it be killed."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .. import atomic, process
from ..errors import ClassifierError
from . import history, releases, rollout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..place import Place
    from .server import Server


@contextlib.contextmanager
def alone(place: Place, patience: float = 0) -> Iterator[None]:
    """Keep others from promoting meanwhile.

    Args:
        place: the server's files.
        patience: seconds to wait until others have done.

    Raises:
        ServerError: one is under way.
    """
    lock, refusal = place.run / "promotion.lock", "another promotion is under way"
    with process.exclusive(lock, refusal, patience):
        yield


@dataclass(frozen=True)
class Journal:
    """The file that says which default to go back to, should its writer be killed."""

    path: Path

    def write(self, entry: history.Entry, is_new: bool) -> None:
        """Note what is about to be done, and whether the version was brought for it."""
        writer = process.identity(os.getpid())
        said = {"entry": asdict(entry), "is_new": is_new, "writer": writer}
        atomic.write(self.path, json.dumps(said))

    def remove(self) -> None:
        """Say that there is nothing to go back to."""
        self.path.unlink(missing_ok=True)

    def abandoned(self) -> dict[str, Any] | None:
        """Return what it says, where its writer is gone."""
        try:
            said: dict[str, Any] = json.loads(self.path.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return said if process.find(said["writer"]) is None else None


def recover(server: Server) -> str | None:
    """Bring a promotion that was killed to an end; return what was done, in words.

    What releases.toml says holds: the old default, unless the new one was kept already.
    """
    if Journal(server.place.journal).abandoned() is None:
        return None
    with alone(server.place):
        return finish(server)


def finish(server: Server) -> str | None:
    """Do as `recover` does, for who keeps others from promoting already."""
    journal, management = Journal(server.place.journal), server.management
    said = journal.abandoned()
    if said is None:
        return None
    entry = history.Entry(**said["entry"])
    released = next((one for one in server.releases if one.model == entry.model), None)
    if released is None:
        journal.remove()
        return f"a promotion of {entry.model} was killed, which is released no more"
    if management.default(entry.model) != released.default:
        management.set_default(entry.model, released.default)
    if released.default == entry.after:
        if entry not in history.read(server.place.history):
            history.append(server.place.history, entry)
        releases.make_default(server.place.served, entry.model, entry.after)
    elif said["is_new"] and entry.after not in released.versions:
        with contextlib.suppress(ClassifierError):
            rollout.retire(management, entry.model, entry.after)
    journal.remove()
    return f"a promotion of {entry.model} was killed; its default is {released.default}"
