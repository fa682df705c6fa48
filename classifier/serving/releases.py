"""releases.toml: which versions are served, and which of them answers by default."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tomlkit

from .. import atomic
from ..archiving.store import check_version
from ..errors import ArchiveError, ReleasesError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Release:
    """What is served of one model."""

    model: str
    default: str
    versions: tuple[str, ...]
    workers: int | None = None
    """Workers of each version."""
    threads: int | None = None
    """Threads of each worker, on a CPU."""
    batch: int | None = None
    """Requests that a worker answers at once, at most."""
    delay: int = 0
    """Milliseconds that a batch waits for more requests than have come."""
    keep: float | None = None
    """The share of requests whose pictures are kept for `classifier shadow`, in (0, 1]."""


NUMBERS = {"workers": 1, "threads": 1, "batch": 1, "delay": 0}
"""Settings of a release that are whole numbers, with the least each may be.

Where one is absent, `config.sizes` makes something of the machine; the delay is 0 then.
"""


def read(path: Path) -> list[Release]:
    """Read the releases of each model.

    Raises:
        ReleasesError: the file is missing, is no TOML, or says what can't be.
    """
    try:
        tables = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ReleasesError(f"{path} is missing: run this in the project's folder") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ReleasesError(f"{path} is no TOML: {error}") from None
    if not tables:
        raise ReleasesError(f"{path} names no model: write a table such as [cifar10]")
    return [_release(path, model, table) for model, table in tables.items()]


def make_default(path: Path, model: str, version: str) -> None:
    """Say that a version is served, and the default; all else, comments too, stays."""
    document = tomlkit.parse(path.read_text())
    table = document.setdefault(model, tomlkit.table())
    versions = list(table.get("versions", []))
    table["default"] = version
    if version not in versions:
        table["versions"] = [*versions, version]
    atomic.write(path, tomlkit.dumps(document))


def copy(path: Path, to: Path, workers: Mapping[str, int]) -> None:
    """Copy releases.toml, with the number of workers of each model written in."""
    document = tomlkit.parse(path.read_text())
    for model, number in workers.items():
        document[model]["workers"] = number
    atomic.write(to, tomlkit.dumps(document))


def _release(path: Path, model: str, table: Any) -> Release:
    def wrong(what: str) -> ReleasesError:
        return ReleasesError(f"{path}: [{model}] {what}")

    if not isinstance(table, dict):
        raise wrong("is no table")
    known = ("default", "versions", *NUMBERS, "keep")
    unknown = table.keys() - set(known)
    if unknown:
        raise wrong(f"has unknown keys: {', '.join(sorted(unknown))} (known: {', '.join(known)})")
    versions, default = table.get("versions"), table.get("default")
    if not isinstance(versions, list) or not _are_different_strings(versions):
        raise wrong('needs versions, a list of different strings such as ["1.0"]')
    try:
        for version in versions:
            check_version(version)
    except ArchiveError as error:
        raise wrong(str(error)) from None
    if type(default) in (int, float):
        raise wrong(f'has default {default}: write a version in quotes, such as "1.0"')
    if not isinstance(default, str) or default not in versions:
        raise wrong(f"has default {default!r}, which is none of its versions")
    for key, least in NUMBERS.items():
        value = table.get(key, least)
        if type(value) is not int or value < least:
            raise wrong(f"needs {key} to be {least} or more, or absent")
    keep = table.get("keep")
    if keep is not None and (type(keep) not in (int, float) or not 0 < keep <= 1):
        raise wrong("needs keep to be more than 0 and 1 at most, or absent")
    numbers = {key: table[key] for key in NUMBERS if key in table}
    return Release(model, default, tuple(versions), **numbers, keep=keep)


def _are_different_strings(values: list[Any]) -> bool:
    strings = [value for value in values if isinstance(value, str)]
    return 0 < len(set(strings)) == len(values)
