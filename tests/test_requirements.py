"""What is installed is what was tested, and what the code imports is asked for."""

from __future__ import annotations

import ast
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from .image import named

UNPINNED = {"classifier", "pip"}
"""Ourselves, and what comes with Python."""
OURS = {"bench", "classifier", "handler", "model", "tests", "training"}
"""Of these, bench measures servers that are installed for that alone (bench/peers/)."""


def imported(folder: str) -> set[str]:
    """Return the first names of what a folder's code imports, but for Python's and ours."""
    names: set[str] = set()
    for path in Path(folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - OURS


def test_everything_that_is_installed_is_pinned() -> None:
    # Of the environment alone: once imported, setuptools puts what it brings along on the path.
    found = metadata.distributions(path=[sysconfig.get_path("purelib")])
    installed = {canonicalize_name(d.name): f"=={d.version}" for d in found}
    pinned = {canonicalize_name(r.name): str(r.specifier) for r in named(Path("constraints.txt"))}
    assert {k: v for k, v in installed.items() if k not in UNPINNED} == pinned


@pytest.mark.parametrize("folder", sorted(OURS - {"bench"}))
def test_everything_that_is_imported_is_declared(folder: str) -> None:
    bring = metadata.packages_distributions()
    asked = {canonicalize_name(r.name) for r in named(Path("requirements.txt"))}
    missing = {
        name
        for name in imported(folder)
        if not asked & {canonicalize_name(d) for d in bring.get(name, ())}
    }
    assert not missing
