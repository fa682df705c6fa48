"""What the model store holds and what the server serves, side by side."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

from ..archiving import store
from ..errors import ClassifierError
from ..serving import history

if TYPE_CHECKING:
    from pathlib import Path

    from ..serving.server import Server

NOBODY = (None, None)
"""The workers of a version that is not served."""


@dataclass(frozen=True)
class Served:
    """A model that a server serves.

    Attributes:
        name: of the model.
        default: the version that answers where none is asked for.
        staffing: of each version its READY workers, and how many it shall have.
    """

    name: str
    default: str
    staffing: dict[str, tuple[int, int]]

    @property
    def versions(self) -> list[str]:
        """Its versions, the oldest first."""
        return store.in_order(self.staffing)


@dataclass(frozen=True)
class Row:
    """One version of a model.

    Attributes:
        model, version: its name.
        is_default: whether it answers where no version is asked for; None where nothing runs.
        ready: its READY workers; None where it is not served.
        workers: how many it shall have; None where it is not served.
        accuracy: on the held-out images of its training, in [0, 1], where its lock tells.
        size: of the archive, in bytes; None where the store has none.
        sha256: of the archive, in hex.
        released: when it last became the default, by the history.
    """

    model: str
    version: str
    is_default: bool | None
    ready: int | None
    workers: int | None
    accuracy: float | None
    size: int | None
    sha256: str | None
    released: str | None


def rows(server: Server) -> list[Row]:
    """Return all versions that are in the store or served, of each model of either."""
    place = server.place
    accuracies = dict(filter(None, map(_look_into, place.model_store.glob("*.mar"))))
    named = {(r.model, v) for r in server.releases for v in r.versions}
    running = {model.name: model for model in _running(server)}
    when = {(entry.model, entry.after): entry.when for entry in history.read(place.history)}
    found = []
    there_now = {(m.name, version) for m in running.values() for version in m.staffing}
    for model, version in sorted(named | accuracies.keys() | there_now):
        now = running.get(model)
        ready, workers = now.staffing.get(version, NOBODY) if now else NOBODY
        path = place.model_store / store.file_name(model, version)
        there = path.is_file()
        found.append(
            Row(
                model=model,
                version=version,
                is_default=None if not running else now is not None and now.default == version,
                ready=ready,
                workers=workers,
                accuracy=accuracies.get((model, version)),
                size=path.stat().st_size if there else None,
                sha256=store.sha256(path) if there else None,
                released=when.get((model, version)),
            )
        )
    return found


def cells(row: Row) -> tuple[str, ...]:
    """Return a row as text."""
    return (
        row.model,
        row.version,
        "yes" if row.is_default else "",
        "–" if row.ready is None else f"{row.ready} of {row.workers}",
        "–" if row.accuracy is None else f"{row.accuracy:.2%}",
        "no archive" if row.size is None else f"{row.size / 1e6:.1f} MB",
        (row.sha256 or "–")[:12],
        row.released or "–",
    )


def served(server: Server) -> list[Served]:
    """Return what a running server serves.

    Raises:
        httpx.TransportError, ServerError: it does not answer, or refuses.
    """
    api = server.management
    return [Served(name, api.default(name), api.staffing(name)) for name in api.models()]


def _running(server: Server) -> list[Served]:
    """Return what a server serves: nothing where none runs, or none answers."""
    try:
        return served(server) if server.process() is not None else []
    except (httpx.TransportError, ClassifierError):
        return []


def _look_into(archive: Path) -> tuple[tuple[str, str], float | None] | None:
    """Return which model and version an archive is, and what its lock says of its accuracy.

    None where it is damaged, or another's by its name.
    """
    try:
        files = store.read(archive)
    except ClassifierError:
        return None
    says = store.manifest(files)
    name = (str(says.get("modelName")), str(says.get("modelVersion")))
    if store.file_name(*name) != archive.name:
        return None
    try:
        return name, float(next(iter(json.loads(files[store.LOCK])["accuracy"].values())))
    except (KeyError, ValueError, TypeError, StopIteration, AttributeError):
        return name, None
