"""Register, retire and stop: nothing that was asked is lost, and what fails says why."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import Mock

import httpx
import pytest

from classifier import atomic
from classifier.archiving import archive
from classifier.errors import ArchiveError, ServerError
from classifier.predicting.client import Client
from classifier.serving import config, rollout

from .images import encode, sample
from .test_lifecycle import classifier, edit
from .test_monitor import ask, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .deployment import Deployment

SLOW = encode(sample().resize((3000, 2500)).convert("L"))
"""An image that takes a worker a tenth of a second."""
REQUESTS = 60
PATIENCE = 150.0
"""Seconds that they may take on a busy machine."""


@pytest.fixture
def second(deployment: Deployment) -> Path:
    """cifar10 2.0, in the store of a running server."""
    path = archive.build("cifar10", "2.0", Path(archive.WEIGHTS), deployment.place.model_store)
    deployment.release("1.0", ["1.0"], workers=2)
    deployment.start()
    return path


def sizes(deployment: Deployment) -> config.Sizes:
    return config.sizes(deployment.server.releases[0], deployment.place.model_config)


@contextmanager
def asking(deployment: Deployment, version: str) -> Iterator[None]:
    """Have slow images asked for meanwhile, which takes seconds; each must get its answer."""
    with (
        Client(deployment.inference, deadline=PATIENCE, timeout=PATIENCE) as client,
        ThreadPoolExecutor(REQUESTS) as pool,
    ):
        asked = [pool.submit(client.predict, SLOW, version) for _ in range(REQUESTS)]
        management = deployment.server.management
        wait_for(lambda: management.pending("cifar10", version) > REQUESTS // 4)
        yield
        assert [future.result().version for future in asked] == [version] * REQUESTS


@pytest.mark.usefixtures("second")
def test_retiring_waits_for_those_who_were_there_first(deployment: Deployment) -> None:
    server = deployment.server
    rollout.register(server, "cifar10", "2.0", sizes(deployment))
    server.management.set_default("cifar10", "2.0")
    with asking(deployment, "1.0"):
        rollout.retire(server.management, "cifar10", "1.0", deadline=PATIENCE)
        assert "1.0" not in server.management.versions("cifar10")


@pytest.mark.usefixtures("second")
def test_a_queue_that_does_not_empty_keeps_its_version(deployment: Deployment) -> None:
    server = deployment.server
    rollout.register(server, "cifar10", "2.0", sizes(deployment))
    waiting = pytest.raises(ServerError, match=r"requests for cifar10:2\.0 were still waiting")
    with asking(deployment, "2.0"), waiting:
        rollout.retire(server.management, "cifar10", "2.0", deadline=0.2)


@pytest.mark.usefixtures("second")
def test_the_default_is_not_retired(deployment: Deployment) -> None:
    with pytest.raises(ServerError, match=r"1\.0 is the default"):
        rollout.retire(deployment.server.management, "cifar10", "1.0")


def test_what_can_not_be_taken_back_hides_no_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Mock()
    server.management.unregister.side_effect = httpx.ReadTimeout("no answer")
    monkeypatch.setattr(rollout, "scale", Mock(side_effect=ServerError("workers can't start")))
    with pytest.raises(ServerError, match="workers can't start"):
        rollout.register(server, "cifar10", "2.0", Mock())
    server.management.unregister.assert_called_once_with("cifar10", "2.0")


def test_what_cannot_be_registered_says_why(deployment: Deployment, second: Path) -> None:
    management, whole = deployment.server.management, second.read_bytes()

    def register() -> None:
        rollout.register(deployment.server, "cifar10", "2.0", sizes(deployment))

    second.write_bytes(whole[:100_000])
    with pytest.raises(ArchiveError, match="is damaged"):
        register()
    second.unlink()
    with pytest.raises(ArchiveError, match=r"no archive of cifar10:2\.0"):
        register()
    for change, cause in (
        (lambda n, d: d + b"\nimport absent\n" if n == "handler/answer.py" else d, "No module"),
        (lambda n, d: d[:-1] + b"\x55" if n == "weights.safetensors" else d, "has sha256"),
    ):
        second.write_bytes(whole)
        edit(second, change)
        with pytest.raises(ServerError, match=f"workers can't start: .*{cause}"):
            register()
        assert "2.0" not in management.versions("cifar10")


def test_stopping_answers_all_that_was_asked(deployment: Deployment) -> None:
    deployment.start()
    with asking(deployment, "1.0"):
        stopping = threading.Thread(target=deployment.server.stop, args=(0.5, PATIENCE))
        stopping.start()
        wait_for(deployment.place.draining.exists)
        assert ask(deployment) == (503, {"ready": False, "reasons": ["it is about to stop"]})
        stopping.join()
    assert deployment.server.process() is None
    assert classifier(*deployment.options, "status").returncode == 1


def test_a_full_disk_keeps_no_stop_from_answering_what_was_asked(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    deployment.start()
    monkeypatch.setattr(atomic, "write", full)
    with asking(deployment, "1.0"):
        assert deployment.server.stop(0.5, PATIENCE)
    assert deployment.server.process() is None


def test_a_stop_that_is_killed_leaves_the_server_ready(deployment: Deployment) -> None:
    deployment.start()
    command = [sys.executable, "-m", "classifier", *deployment.options, "stop", "--grace=300"]
    with subprocess.Popen(command) as stopping:
        wait_for(lambda: ask(deployment)[0] == 503)
        stopping.kill()
    wait_for(lambda: ask(deployment)[0] == 200)
    deployment.server.check()
