"""docs/tutorial.md: its commands do what it says, in order, in a copy of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from classifier.place import Place
from classifier.serving.server import Server
from training import cifar10

from .deployment import on_free_ports
from .test_readme import PUBLISHED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from training.data import Images

TUTORIAL = Path("docs/tutorial.md").read_text()
SECTIONS = re.split(r"^## \d+\. ", TUTORIAL, flags=re.MULTILINE)
FAILS = "# exit status 1"


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A copy of the project's files, with its environment, on free ports."""
    folder = tmp_path / "project"
    for name in _files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, folder / name)
        os.utime(folder / name, (0, 0))  # older than .venv: make has nothing to install
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    configuration = folder / "config.properties"
    configuration.write_text(on_free_ports(configuration.read_text()))
    yield folder
    Server(_place(folder)).stop()


def _files() -> list[Path]:
    """Return the project's files, as git knows them."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    # What was deleted and not yet committed is listed, too.
    return [path for path in map(Path, listed.stdout.split("\0")) if path.is_file()]


def _place(folder: Path) -> Place:
    return Place(
        run=folder / "run",
        model_store=folder / "model_store",
        releases=folder / "releases.toml",
        config=folder / "config.properties",
    )


def _run(folder: Path, block: str) -> str:
    """Run a block of commands; return what it prints. Those that shall fail, must."""
    server = Server(_place(folder))
    for published, key in PUBLISHED.items():
        if published.startswith("http"):
            block = block.replace(published, server.properties[key])
    block = re.sub(rf"^(.*){FAILS}$", r"if \1; then exit 9; fi", block, flags=re.MULTILINE)
    root = cifar10.find()
    environment = os.environ | {
        "PATH": f"{folder / '.venv/bin'}{os.pathsep}{os.environ['PATH']}",
        "CIFAR10_ROOT": str(root and root.resolve()),
    }
    ran = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, f"{block}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout + ran.stderr


@pytest.mark.timeout(600)
def test_the_tutorial_does_what_it_says(project: Path, test_images: Images) -> None:
    *sections, tidy_up = (re.findall(r"```sh\n(.*?)```", section, re.S) for section in SECTIONS)
    said = ["".join(_run(project, block) for block in blocks) for blocks in sections]
    _, _, packed, released, served, compared, promoted, refused, back, stopped = said
    assert "model_store/mine-1.0.mar" in packed
    assert "version='1.0'" in released
    assert "samples/coffee.jpg" in served
    assert "by 1.0" in served
    assert (project / "report.html").read_text().count("<img") > 20
    assert compared.count("on ") >= 2
    assert "mine:2.0 is the default" in promoted
    assert "3.0 is right about" in refused
    assert "mine:1.0 is the default again" in back
    assert "mine 1.0 (default), 2.0 at" in back
    assert back.index("promote") < back.index("rollback")
    assert "TorchServe has stopped" in stopped
    for block in tidy_up:
        _run(project, block)
    generated = ("run", ".venv")
    left = {path.relative_to(project) for path in project.rglob("*") if path.is_file()}
    left = {p for p in left if p.parts[0] not in generated and "__pycache__" not in p.parts}
    assert left == set(_files())
    assert (project / "releases.toml").read_text() == Path("releases.toml").read_text()
