"""The files that say what is released, and what was."""

from __future__ import annotations

import getpass
import os
import re
from typing import TYPE_CHECKING

import pytest

from classifier.errors import ReleasesError
from classifier.serving import history, releases
from classifier.serving.state import State

if TYPE_CHECKING:
    from pathlib import Path

TEXT = '# why\n[cifar10]\ndefault = "1.0"\nversions = ["1.0"]\nworkers = 2  # of two cores\n'


def test_another_default_leaves_all_else(tmp_path: Path) -> None:
    path = tmp_path / "releases.toml"
    path.write_text(TEXT)
    releases.make_default(path, "cifar10", "2.0")
    expected = TEXT.replace('default = "1.0"', 'default = "2.0"')
    assert path.read_text() == expected.replace('["1.0"]', '["1.0", "2.0"]')
    releases.make_default(path, "cifar10", "1.0")
    (release,) = releases.read(path)
    assert (release.default, release.versions) == ("1.0", ("1.0", "2.0"))


def test_a_model_that_was_not_served_gets_its_table(tmp_path: Path) -> None:
    path = tmp_path / "releases.toml"
    path.write_text(TEXT)
    releases.make_default(path, "pets", "1.0")
    assert path.read_text().startswith(TEXT)
    _, pets = releases.read(path)
    assert (pets.model, pets.default, pets.versions) == ("pets", "1.0", ("1.0",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"1.0"', "1.0"), 'has default 1.0: write a version in quotes, such as "1.0"'),
        (("workers", "worker"), "has unknown keys: worker (known: default, versions, workers, "),
    ],
)
def test_what_is_easily_mistyped_is_told_with_what_is_right(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    path = tmp_path / "releases.toml"
    path.write_text(TEXT.replace(*change, 1))
    with pytest.raises(ReleasesError, match=re.escape(message)):
        releases.read(path)


def test_the_history_grows_by_a_line(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    entries = [
        history.Entry("promote", "cifar10", "1.0", "2.0", figures={"sha256": "a"}),
        history.Entry("rollback", "cifar10", "2.0", "1.0", figures={"sha256": "b"}),
        history.Entry("promote", "cifar10", "1.0", "2.0", figures={"sha256": "c"}),
    ]
    for entry in entries:
        history.append(path, entry)
    path.write_text(path.read_text().removesuffix("\n"))  # as some editors leave it
    assert history.read(path) == entries
    assert history.sha256(entries, "cifar10", "2.0") == "c"
    assert history.sha256(entries, "cifar10", "3.0") is None


def test_nothing_is_noted_of_a_server_that_was_stopped(tmp_path: Path) -> None:
    state = State(tmp_path / "server.json")
    state.note_archive("cifar10-2.0.mar", "of it")
    assert not list(tmp_path.iterdir())


def test_who_has_no_name_is_noted_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert history.Entry("promote", "cifar10", "1.0", "2.0").who == str(os.getuid())
