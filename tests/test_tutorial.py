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

from classifier import history, releases
from classifier.server import Place, Server
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
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
    )
    folder = tmp_path / "project"
    for name in filter(None, listed.stdout.split("\0")):
        if Path(name).exists():  # what was deleted and not yet committed does not
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(name, folder / name)
            os.utime(folder / name, (0, 0))  # older than .venv: make has nothing to install
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    configuration = folder / "config.properties"
    configuration.write_text(on_free_ports(configuration.read_text()))
    yield folder
    Server(_place(folder)).stop()


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
    said = [
        "".join(_run(project, block) for block in re.findall(r"```sh\n(.*?)```", section, re.S))
        for section in SECTIONS
    ]
    _, _, packed, released, served, compared, promoted, refused, back, stopped = said
    assert "model_store/mine-1.0.mar" in packed
    assert "version='1.0'" in released
    assert "samples/coffee.jpg" in served
    assert "by 1.0" in served
    assert (project / "report.html").read_text().count("<img") > 50
    assert compared.count("on ") >= 2
    assert "mine:2.0 is the default" in promoted
    assert "3.0 is right about" in refused
    assert "mine:1.0 is the default again" in back
    assert "TorchServe has stopped" in stopped
    place = _place(project)
    (release,) = releases.read(place.releases)
    assert (release.default, release.versions) == ("1.0", ("1.0", "2.0"))
    assert [entry.action for entry in history.read(place.history)] == ["promote", "rollback"]
