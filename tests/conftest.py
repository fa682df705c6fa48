"""What the tests share: a scrubbed environment, an archive, and real TorchServes to ask."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
import torch
from safetensors.torch import load_file

from classifier.archiving import archive
from classifier.serving import ports
from training import cifar10

from .deployment import Deployment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from training.data import Images

SCRUBBED = ("JAVA_HOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "TS_CONFIG_FILE", "LOG_LOCATION")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")


@pytest.fixture(autouse=True, scope="session")
def environment() -> Iterator[None]:
    """Keep what the caller's environment says of TorchServe out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (*SCRUBBED, *PROXIES, *map(str.upper, PROXIES)):
            patch.delenv(name, raising=False)
        patch.setattr(sys, "dont_write_bytecode", False)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            # By nohup. What is started would ignore it, too; of a handler it inherits nothing.
            signal.signal(signal.SIGHUP, lambda *_: None)
        yield


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with the released weights as cifar10 1.0."""
    folder = tmp_path_factory.mktemp("store")
    archive.build("cifar10", "1.0", Path(archive.WEIGHTS), folder)
    return folder


@pytest.fixture(scope="session")
def shared_deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One server for all tests that only ask.

    Its default, cifar10 1.0, answers with torch in floats, which can be compared with the
    reference; 1.1 is as released.
    """
    folder = tmp_path_factory.mktemp("server")
    deployment = Deployment(folder, batch_delay=500)
    floats, weights = with_engine("torch", folder), Path(archive.WEIGHTS)
    archive.build("cifar10", "1.0", floats / weights, deployment.place.model_store, floats)
    archive.build("cifar10", "1.1", weights, deployment.place.model_store)
    deployment.release("1.0", ["1.0", "1.1"])
    deployment.start()
    yield deployment
    deployment.stop()


@pytest.fixture
def deployment(store: Path, tmp_path: Path) -> Iterator[Deployment]:
    """A server of the test's own, not yet started, with cifar10 1.0 in its store."""
    deployment = Deployment(tmp_path)
    deployment.add(store / "cifar10-1.0.mar")
    yield deployment
    deployment.stop()


@pytest.fixture(scope="session")
def trucks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that take everything for a truck."""
    state = load_file(archive.WEIGHTS)
    state["fc2.bias"][9] += 100
    path = tmp_path_factory.mktemp("weights") / "trucks.pth"
    torch.save(state, path)
    return path


@pytest.fixture
def free_port() -> int:
    """A port on which nobody listens."""
    (port,) = ports.free(1)
    return port


@pytest.fixture(scope="session")
def test_images() -> Images:
    """CIFAR-10's test images; where they should be there, their absence is a failure."""
    if cifar10.find() is None:
        do_without("CIFAR-10 is in none of CIFAR10_ROOT, data/, ../shared/cifar10")
    return cifar10.load(train=False)


@pytest.fixture(scope="session")
def curl() -> str:
    """The program curl, as README uses it."""
    return shutil.which("curl") or do_without("curl is not installed")


def with_engine(engine: str, folder: Path) -> Path:
    """Copy what is archived into a folder, with another engine picked; return the copy."""
    project = folder / "project"
    for name in ("handler", "model"):
        shutil.copytree(name, project / name)
    path = project / archive.CONFIG
    path.write_text(re.sub(r"engine: \w+", f"engine: {engine}", path.read_text()))
    return project


def do_without(reason: str) -> NoReturn:
    """Skip a test for want of something, but fail where all should be there: in CI."""
    if os.environ.get("REQUIRE_ALL"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Show the server's log with a test that failed."""
    report = yield
    for value in getattr(item, "funcargs", {}).values():
        if isinstance(value, Deployment) and report.failed:  # type: ignore[attr-defined]
            report.sections.append(("TorchServe's log", value.log_tail()))  # type: ignore[attr-defined]
    return report


def pytest_sessionstart() -> None:
    """Archives, samples and configuration are found from the project's folder."""
    assert Path("releases.toml").exists(), f"run pytest in the project's folder, not {Path.cwd()}"
    assert sys.version_info >= (3, 11)
