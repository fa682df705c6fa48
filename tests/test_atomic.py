"""Files are written at one stroke, or not at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest

from classifier import atomic

if TYPE_CHECKING:
    from pathlib import Path


def test_a_link_stays_one_and_so_does_who_may_read(tmp_path: Path) -> None:
    there, link = tmp_path / "there" / "releases.toml", tmp_path / "releases.toml"
    there.parent.mkdir()
    there.write_text("old")
    there.chmod(0o640)
    link.symlink_to(there)
    atomic.write(link, "new")
    assert link.is_symlink()
    assert there.read_text() == "new"
    assert there.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("outcome", [None, PermissionError()])
def test_a_file_stays_its_owners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Exception | None
) -> None:
    path, given = tmp_path / "releases.toml", Mock(side_effect=outcome)
    path.write_text("old")
    monkeypatch.setattr(os, "chown", given)  # to others only root may give
    atomic.write(path, "new")
    assert path.read_text() == "new"
    assert given.call_args.args[1:] == (os.getuid(), os.getgid())


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_what_fails_to_be_written_leaves_nothing(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text("before")

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        atomic.write(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_ends_a_write_that_is_done_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "history.jsonl"
    replace = os.replace

    def interrupted(*arguments: str) -> None:
        replace(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic.write(path, "after")
    assert path.read_text() == "after"
