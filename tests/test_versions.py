"""Versions: register, switch, go back, unregister, as TorchServe documents it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest.mock import create_autospec

import httpx
import pytest
import requests
import torch
from safetensors.torch import load_file

from classifier.archiving import archive
from classifier.errors import ServerError
from classifier.process import wait as wait_until_ended
from classifier.serving.management import Management, differences
from classifier.serving.releases import Release

from .images import SAMPLE

if TYPE_CHECKING:
    from pathlib import Path

    from .deployment import Deployment


@pytest.fixture
def second(tmp_path: Path, store: Path) -> Path:
    """cifar10 2.0, which takes everything for a truck."""
    state = load_file(archive.WEIGHTS)
    state["fc2.bias"][9] += 100
    torch.save(state, tmp_path / "trucks.pth")
    return archive.build("cifar10", "2.0", tmp_path / "trucks.pth", tmp_path)


def label(deployment: Deployment, version: str = "") -> tuple[str, str]:
    """Return the version that answers, and its label for the sample."""
    answer = deployment.predict(SAMPLE.read_bytes(), version)
    assert answer.status_code == 200, answer.text
    return answer.headers["X-Model-Version"], next(iter(answer.json()))


def test_register_switch_go_back_unregister(deployment: Deployment, second: Path) -> None:
    deployment.start()
    deployment.add(second)
    models = f"{deployment.management}/models"
    assert label(deployment) == ("1.0", "cat")

    query = {"url": "cifar10-2.0.mar", "initial_workers": "1", "synchronous": "true"}
    assert requests.post(models, params=query, timeout=120).status_code == 200
    assert label(deployment) == ("1.0", "cat"), "registering alone changes nothing"
    assert label(deployment, "2.0") == ("2.0", "truck")

    switch = requests.put(f"{models}/cifar10/2.0/set-default", timeout=60)
    assert switch.status_code == 200
    assert label(deployment) == ("2.0", "truck")
    assert label(deployment, "1.0") == ("1.0", "cat")

    assert requests.put(f"{models}/cifar10/1.0/set-default", timeout=60).status_code == 200
    assert label(deployment) == ("1.0", "cat")

    assert requests.delete(f"{models}/cifar10/2.0", timeout=60).status_code == 200
    assert deployment.predict(SAMPLE.read_bytes(), "2.0").status_code == 404
    deployment.server.check()


def test_takes_its_batching_from_the_archive_when_registered(
    deployment: Deployment, second: Path
) -> None:
    deployment.start()
    deployment.add(second)
    query = {"url": "cifar10-2.0.mar", "initial_workers": "1", "synchronous": "true"}
    requests.post(f"{deployment.management}/models", params=query, timeout=120)
    assert deployment.describe("2.0")["batchSize"] == 16
    assert deployment.describe("2.0")["maxBatchDelay"] == 1


def test_serves_after_a_restart_what_is_released(deployment: Deployment, second: Path) -> None:
    deployment.add(second)
    deployment.release(default="2.0", versions=["1.0", "2.0"])
    deployment.start()
    assert label(deployment) == ("2.0", "truck")

    url = f"{deployment.management}/models/cifar10/1.0/set-default"
    assert requests.put(url, timeout=60).status_code == 200
    assert label(deployment) == ("1.0", "cat")
    with pytest.raises(Exception, match=r"cifar10's default is 1\.0, but 2\.0 is released"):
        deployment.server.check()

    deployment.stop()
    deployment.start()
    assert label(deployment) == ("2.0", "truck")
    assert label(deployment, "1.0") == ("1.0", "cat")


def test_serves_what_is_released_after_a_crash(deployment: Deployment, second: Path) -> None:
    deployment.add(second)
    deployment.release(default="1.0", versions=["1.0", "2.0"])
    deployment.start()
    requests.put(f"{deployment.management}/models/cifar10/2.0/set-default", timeout=60)
    process = deployment.server.process()
    assert process is not None
    workers = process.children(recursive=True)
    process.kill()
    process.wait(60)
    assert not wait_until_ended(workers, 60), "workers outlived their server"
    assert deployment.server.process() is None

    deployment.start()
    assert label(deployment) == ("1.0", "cat")
    assert label(deployment, "2.0") == ("2.0", "truck")


def test_each_way_to_differ_from_what_is_released_is_told() -> None:
    api = create_autospec(Management, instance=True)
    api.registered.return_value = {("a", "1.0"): 1, ("a", "2.0"): 2, ("b", "1.0"): 2}
    api.default.return_value = "1.0"
    released = [Release("a", "3.0", ("1.0", "3.0"), workers=2), Release("c", "1.0", ("1.0",))]
    assert differences(api, released) == [
        "a:3.0 is not registered",
        "c:1.0 is not registered",
        "a:2.0 is served, but not released",
        "b:1.0 is served, but not released",
        "a:1.0 has 1 of 2 workers READY",
        "a's default is 1.0, but 3.0 is released",
    ]


def test_what_is_served_as_it_is_released_does_not_differ() -> None:
    api = create_autospec(Management, instance=True)
    api.registered.return_value = {("a", "1.0"): 2}
    api.default.return_value = "1.0"
    assert differences(api, [Release("a", "1.0", ("1.0",), workers=2)]) == []


GONE = {"code": 404, "type": "ModelVersionNotFoundException", "message": "1.0 does not exist"}
LISTED = {"modelVersion": "2.0", "workers": [{"status": "READY"}], "minWorkers": 2}


def management_that_gets(*answers: httpx.Response) -> Management:
    """Return a management API that gets these answers, one after the other, for a race."""
    rest = iter(answers)
    management = Management("http://server")
    transport = httpx.MockTransport(lambda request: next(rest))
    management._http = httpx.Client(base_url=management.url, transport=transport)
    return management


def test_versions_are_listed_again_when_one_goes_meanwhile() -> None:
    gone, listed = httpx.Response(404, json=GONE), httpx.Response(200, json=[LISTED])
    assert management_that_gets(gone, gone, listed).staffing("cifar10") == {"2.0": (1, 2)}
    with pytest.raises(ServerError, match=r"404: 1\.0 does not exist"):
        management_that_gets(*[gone] * 5).staffing("cifar10")


def test_what_the_server_refuses_is_not_asked_again() -> None:
    refusal = {"code": 404, "type": "ModelNotFoundException", "message": "no pets"}
    with pytest.raises(ServerError, match="404: no pets"):
        management_that_gets(httpx.Response(404, json=refusal)).versions("pets")


def test_where_models_can_not_be_changed_it_says_what_to_do() -> None:
    refusal = {"code": 405, "type": "MethodNotAllowedException", "message": "not allowed"}
    fixed = management_that_gets(httpx.Response(405, json=refusal))
    with pytest.raises(ServerError, match=r"answers 405: .*let releases\.toml say it, then stop"):
        fixed.scale("cifar10", "2.0", 1)
