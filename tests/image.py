"""The container's image, as far as it can be made without an engine: its files, by its COPY lines.

What pip installs into it is taken from this environment: of that, the packages that the image's
requirements name, and what they need, and nothing else.
"""

from __future__ import annotations

import io
import json
import shlex
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from docker.utils import build
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTAINERFILE = Path("deploy/container/Containerfile")
ENVIRONMENT = "/opt/venv"


@dataclass
class Stage:
    """One stage of the Containerfile.

    Attributes:
        name: how others call it.
        base: what it begins from.
        instructions: the rest, each with its value, in order.
    """

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        """Return the values of every such instruction."""
        return [value for name, value in self.instructions if name == instruction]

    def one(self, instruction: str) -> str:
        """Return the value of the only such instruction."""
        (value,) = self.all(instruction)
        return value

    def command(self, instruction: str) -> list[str]:
        """Return the words of a command in exec form; fail if it is in shell form."""
        value = self.one(instruction)
        words: list[str] = json.loads(value[value.index("[") :])
        return words

    @property
    def folder(self) -> str:
        """Where its commands run."""
        return self.all("WORKDIR")[-1]


def stages() -> list[Stage]:
    """Read the Containerfile."""
    parsed = DockerfileParser(fileobj=io.BytesIO(CONTAINERFILE.read_bytes())).structure
    found: list[Stage] = []
    for line in parsed:
        instruction, value = line["instruction"], line["value"]
        if instruction == "FROM":
            base, _, name = value.partition(" AS ")
            found.append(Stage(name, base))
        elif found and instruction != "COMMENT":
            found[-1].instructions.append((instruction, value))
    return found


def context(project: Path = Path()) -> set[str]:
    """Return the files of a folder that .dockerignore lets into a build, as Docker reads it."""
    lines = Path(".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    return set(build.exclude_paths(str(project), patterns, str(CONTAINERFILE)))


class Image:
    """The image's files in a folder, with its paths below it.

    Args:
        folder: an empty one.

    Attributes:
        root: the folder that is `/` in the image.
        folder: the one below it in which its command runs.
        last: the last stage, which says how it runs.
        lent: folders of this machine that its environment is made of.
    """

    def __init__(self, folder: Path) -> None:
        self._context = context()
        self._roots: dict[str, Path] = {}
        for stage in stages():
            root = self._roots[stage.name] = folder / (stage.name or "image")
            if stage.base in self._roots:
                shutil.copytree(self._roots[stage.base], root, symlinks=True)
            for line in stage.all("COPY"):
                self._copy(line, root, stage.folder)
            if stage.name == "packages":
                requirements = _inside(root, stage.folder) / "requirements-serving.txt"
                self.lent = install(requirements, _inside(root, ENVIRONMENT))
            if stage.name == "archive":
                for command in stage.all("RUN"):
                    self._run(command, root, stage.folder)
            self.root, self.last = root, stage
        self.folder = _inside(self.root, self.last.folder)
        (self.folder / "run").mkdir()

    @property
    def environment(self) -> dict[str, str]:
        """What its ENV lines say, with the folder's paths."""
        inherited = {"PATH": "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"}
        words = [word for line in self.last.all("ENV") for word in shlex.split(line)]
        for name, _, value in (word.partition("=") for word in words):
            inherited[name] = value.replace("$PATH", inherited["PATH"])
        return inherited

    @property
    def command(self) -> list[str]:
        """What it runs."""
        return self.last.command("ENTRYPOINT") + self.last.command("CMD")

    def _copy(self, line: str, root: Path, folder: str) -> None:
        options = [word for word in shlex.split(line) if word.startswith("--")]
        *sources, to = [word for word in shlex.split(line) if not word.startswith("--")]
        target = _inside(root, folder) / to.lstrip("/") if not to.startswith("/") else root / to[1:]
        for source in sources:
            if options:
                (option,) = options
                begin = self._roots[option.removeprefix("--from=")] / source.lstrip("/")
                shutil.copytree(begin, target, symlinks=True)
                continue
            files = self._files(source)
            assert files, f"COPY {source}: no such file, or .dockerignore keeps it out"
            for file in files:
                whole = Path(source).is_dir()
                where = target / (file.relative_to(source) if whole else file.name)
                where.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, where)

    def _files(self, source: str) -> list[Path]:
        files = (path for path in map(Path, self._context) if path.is_file())
        return [path for path in files if Path(source) in (path, *path.parents)]

    def _run(self, command: str, root: Path, folder: str) -> None:
        programs = _inside(root, ENVIRONMENT) / "bin"
        environment = {"PATH": f"{programs}:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=_inside(root, folder),
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"


def _inside(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def install(requirements: Path, environment: Path) -> set[Path]:
    """Make a virtual environment of links to the packages of this one that are required.

    Returns:
        The folders where they are.
    """
    venv.create(environment, with_pip=False, symlinks=True)
    found = {Path(sys.base_prefix)}
    (packages,) = environment.glob("lib/python*/site-packages")
    for name in sorted(required(requirements)):
        distribution = metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
        for top in tops:
            target, link = Path(str(distribution.locate_file(top))).resolve(), packages / top
            found.add(target.parent)
            if not link.exists():
                link.symlink_to(target)
    return found


def required(requirements: Path) -> set[str]:
    """Return the packages of a file of requirements, and all that these need."""
    found: set[tuple[str, str]] = set()

    def add(requirement: Requirement) -> None:
        for extra in ("", *sorted(requirement.extras)):
            key = (canonicalize_name(requirement.name), extra)
            if key in found:
                continue
            found.add(key)
            for text in metadata.distribution(key[0]).requires or ():
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    add(needed)

    for requirement in named(requirements):
        add(requirement)
    return {name for name, _ in found}


def named(requirements: Path) -> Iterator[Requirement]:
    """Read a file of requirements, and those that it refers to."""
    for line in requirements.read_text().splitlines():
        text = line.split("#")[0].strip()
        if text.startswith("-r "):
            yield from named(requirements.parent / text[3:].strip())
        elif text:
            yield Requirement(text)
