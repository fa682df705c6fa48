"""What the trials share: their length, their seed, a server under load, and where figures go."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from classifier.archiving import archive

from ..deployment import Deployment
from .report import write

if TYPE_CHECKING:
    from collections.abc import Iterator

RESULTS = Path("run/chaos/results.json")
figures_key = pytest.StashKey[dict[str, dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos")
    group.addoption("--long", action="store_true", help="the long forms; writes docs/resilience.md")
    group.addoption("--seed", type=int, help="of what is drawn; another at each run if absent")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[figures_key] = {}
    if config.getoption("--seed") is None:
        config.option.seed = random.randrange(10**6)


def pytest_report_header(config: pytest.Config) -> str:
    return f"chaos: --seed={config.getoption('--seed')}"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Show the figures; after the long forms, keep them for docs/resilience.md."""
    found = config.stash[figures_key]
    for trial, figures in found.items():
        terminalreporter.section(trial, sep="-")
        for name, value in figures.items():
            terminalreporter.line(f"{name}: {value}")
    passed = {_title(r.nodeid.rpartition("::")[2]) for r in terminalreporter.getreports("passed")}
    found = {trial: figures for trial, figures in found.items() if trial in passed}
    if found and config.getoption("--long"):
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        day = datetime.now(UTC).date().isoformat()
        kept |= {trial: {"date": day, **figures} for trial, figures in found.items()}
        RESULTS.write_text(json.dumps(kept, indent=2) + "\n")
        write(kept)


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the long form is asked for."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def only_long(long: bool) -> None:
    """Leave a trial out of the short forms."""
    if not long:
        pytest.skip("only in `make chaos LONG=1`")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Of all that is drawn."""
    return int(request.config.getoption("--seed"))


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a trial found, by name: shown at the end."""
    return request.config.stash[figures_key].setdefault(_title(request.node.name), {})


def _title(name: str) -> str:
    """Return what a trial is called, by its function."""
    return name.removeprefix("test_").replace("_", " ")


@pytest.fixture
def served(store: Path, tmp_path: Path) -> Iterator[Deployment]:
    """The released model as it is shipped, with two workers, running."""
    deployment = Deployment(tmp_path)
    deployment.add(store / f"{archive.MODEL}-{archive.VERSION}.mar")
    deployment.release("1.0", ["1.0"], workers=2)
    deployment.start()
    yield deployment
    deployment.stop()
