"""The Makefile: what its targets take, and what they do where things are half done."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make in a folder that holds the Makefile."""
    shutil.copy("Makefile", folder)
    return subprocess.run(
        ["/usr/bin/env", "make", *arguments], cwd=folder, capture_output=True, text=True, timeout=60
    )


def test_a_name_that_no_target_takes_is_told(tmp_path: Path) -> None:
    done = make(tmp_path, "archive", "VERSON=2.0")
    assert done.returncode == 2
    assert "there is no VERSON: `make help` lists" in done.stderr


@pytest.mark.parametrize("given", ["VERSION=2.0", "NAME=a b", "PYTHON=python3"])
def test_names_that_targets_take_are_taken(tmp_path: Path, given: str) -> None:
    done = make(tmp_path, "help", given)
    assert done.returncode == 0
    assert "archive" in done.stdout


def test_what_was_half_set_up_is_cleaned(tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / ".venv" / "bin" / "python").chmod(0o755)
    done = make(tmp_path, "clean")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / ".venv").exists()
