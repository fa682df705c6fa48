"""The monitor: when it says that a server is ready, and what it does about dead workers."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

import httpx
import psutil
import pytest
import yaml
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from classifier.errors import ServerError
from classifier.process import end, find
from classifier.serving import monitor
from classifier.serving.monitor import Reviver
from classifier.serving.readiness import Readiness
from classifier.serving.releases import Release

from .images import SAMPLE, encode
from .test_lifecycle import classifier, edit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .deployment import Deployment


QUEUE = 200
"""Slow images, more than are answered while a probe is waited for."""
TRIED = 5
"""Slow images that tell how long that is: four times what these take, each as the quickest."""


def ask(deployment: Deployment, path: str = "/ready") -> tuple[int, dict[str, Any]]:
    """Ask the monitor's endpoint."""
    answer = httpx.get(deployment.port("readiness_address") + path, timeout=60)
    return answer.status_code, answer.json()


def _seconds(post: Callable[[], httpx.Response]) -> float:
    """Return how long a request takes."""
    begin = time.monotonic()
    assert post().is_success
    return time.monotonic() - begin


def wait_for(what: Callable[[], bool], deadline: float = 120) -> None:
    """Wait until something is so."""
    end = time.monotonic() + deadline
    while not what():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


def ready_workers(deployment: Deployment) -> list[int]:
    workers = deployment.server.management.workers("cifar10", "1.0")
    return [worker.pid for worker in workers if worker.is_ready]


def monitor_log(deployment: Deployment) -> str:
    return (deployment.place.logs / monitor.LOG).read_text()


def test_ready_follows_what_is_served(deployment: Deployment) -> None:
    deployment.start()
    assert ask(deployment) == (200, {"ready": True, "reasons": []})
    told = classifier(*deployment.options, "ready", "--json")
    assert json.loads(told.stdout) == {"ready": True, "reasons": []}
    assert ask(deployment, "/live")[0] == 200
    said = classifier(*deployment.options, "ready")
    assert (said.returncode, said.stdout) == (0, "ready\n")

    (pid,) = ready_workers(deployment)
    psutil.Process(pid).kill()
    wait_for(lambda: not ready_workers(deployment))
    assert Readiness(deployment.server).reasons() == ["cifar10:1.0 has no READY worker"]
    assert ask(deployment, "/live")[0] == 200
    wait_for(lambda: ask(deployment)[0] == 200)
    assert ready_workers(deployment) != [pid]

    process = deployment.server.process()
    assert process is not None
    process.kill()
    wait_for(lambda: ask(deployment, "/live")[0] == 503)
    wait_for(lambda: ask(deployment)[1]["reasons"] == ["TorchServe does not run"])
    said = classifier(*deployment.options, "ready")
    assert (said.returncode, said.stdout) == (1, "not ready: TorchServe does not run\n")


def test_without_its_monitor_it_is_not_ready(deployment: Deployment) -> None:
    deployment.start()
    watching = find(deployment.server.state.monitor)
    assert watching is not None
    end(watching, 60)
    said = classifier(*deployment.options, "ready")
    assert said.returncode == 1
    assert said.stdout.startswith("not ready: its monitor does not answer: ")


def test_clients_that_never_end_their_request_keep_nobody_from_asking() -> None:
    told = {"watched": mock.Mock(), "readiness": mock.Mock()}
    endpoint = monitor._Endpoint(("127.0.0.1", 0), type("Handler", (monitor._Handler,), told))
    where, more = ("127.0.0.1", endpoint.server_port), 3
    threading.Thread(target=endpoint.serve_forever, daemon=True).start()
    try:
        with contextlib.ExitStack() as stack:
            slow = []
            for _ in range(monitor.MOST_CONNECTIONS + more):
                slow.append(stack.enter_context(socket.create_connection(where, timeout=30)))
                slow[-1].sendall(b"GET /live HT")
            assert [one.recv(1) for one in slow[:more]] == [b""] * more, "the oldest are let go"
            assert httpx.get(f"http://127.0.0.1:{where[1]}/live").status_code == 200
            slow[-1].sendall(b"TP/1.0\r\n\r\n")
            assert slow[-1].recv(12) == b"HTTP/1.0 200"
        wait_for(lambda: not endpoint._connections)
    finally:
        endpoint.shutdown()
        endpoint.server_close()


def test_a_connection_that_breaks_is_told_in_the_log(deployment: Deployment) -> None:
    """And not on the console, which is a file without end."""
    deployment.start()
    where = ("127.0.0.1", deployment.ports["readiness_address"])
    with socket.create_connection(where) as connection:
        connection.sendall(b"GET /re")
        at_once = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)  # close by a reset
    wait_for(lambda: "a connection broke: ConnectionResetError" in monitor_log(deployment))
    assert (deployment.place.logs / monitor.CONSOLE).read_text() == ""


def test_metrics_are_passed_on(deployment: Deployment) -> None:
    """So that Prometheus needs no way to TorchServe's own port."""
    deployment.start()
    url = deployment.port("readiness_address") + "/metrics"
    passed = httpx.get(url, timeout=60)
    own = httpx.get(deployment.port("metrics_address") + "/metrics", timeout=60)
    assert passed.headers["Content-Type"] == own.headers["Content-Type"]
    families = {family.name for family in text_string_to_metric_families(passed.text)}
    assert families == {family.name for family in text_string_to_metric_families(own.text)}
    assert "ts_inference_requests" in families
    process = deployment.server.process()
    assert process is not None
    process.kill()
    wait_for(lambda: httpx.get(url, timeout=60).status_code == 502)
    assert httpx.get(url.replace("metrics", "models"), timeout=60).status_code == 404


def test_a_worker_that_is_ready_but_answers_nothing_is_noticed(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("classifier.serving.readiness.FRESH", 0.0)
    monkeypatch.setattr("classifier.serving.readiness.TIMEOUT", 1.0)
    deployment.start()
    readiness = Readiness(deployment.server)
    wait_for(lambda: not readiness.reasons())  # on busy cores an answer may take longer than 1 s
    (pid,) = ready_workers(deployment)
    psutil.Process(pid).suspend()
    try:
        healthy = httpx.get(f"{deployment.inference}/ping", timeout=60)
        assert healthy.json() == {"status": "Healthy"}
        for asked in (readiness, Readiness(deployment.server)):
            assert asked.reasons() == ["TorchServe does not answer: timed out"]
    finally:
        psutil.Process(pid).resume()
    wait_for(lambda: not Readiness(deployment.server).reasons())


def test_a_worker_with_a_long_queue_is_ready(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("classifier.serving.readiness.FRESH", 0.0)
    releases = deployment.place.releases
    releases.write_text(releases.read_text() + "batch = 1\n")  # so that some end meanwhile
    deployment.start()
    image = encode(Image.new("RGB", (2000, 2000)), "PNG")  # takes long, and is small as a file
    url = f"{deployment.inference}/predictions/cifar10"
    many = httpx.Limits(max_connections=QUEUE)
    with httpx.Client(limits=many, timeout=300) as client, ThreadPoolExecutor(QUEUE) as pool:
        # Ample for one image, and for workers to tell of it, and too short for the queue.
        quickest = min(_seconds(partial(client.post, url, content=image)) for _ in range(TRIED))
        monkeypatch.setattr("classifier.serving.readiness.TIMEOUT", max(2.0, 4 * TRIED * quickest))
        readiness, fresh = Readiness(deployment.server), Readiness(deployment.server)
        wait_for(lambda: not readiness.reasons())
        asked = [pool.submit(client.post, url, content=image) for _ in range(QUEUE)]
        wait_for(lambda: deployment.server.management.pending("cifar10", "1.0") > QUEUE // 2)
        with ThreadPoolExecutor() as both:
            found, unknown = both.map(Readiness.reasons, (readiness, fresh))
        assert not found
        assert unknown == ["TorchServe does not answer: timed out"], "no answer was seen yet"
        assert not all(future.done() for future in asked), "the queue was too short"
        assert {future.result().status_code for future in asked} == {200}


@pytest.mark.parametrize("path", ["absent", None], ids=["an error", "nobody"])
def test_is_ready_where_metrics_can_not_be_had(
    deployment: Deployment, free_port: int, path: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.start()
    readiness = Readiness(deployment.server)
    nobody = f"http://127.0.0.1:{free_port}"
    where = f"{deployment.port('metrics_address')}/{path}" if path else nobody
    monkeypatch.setattr(readiness, "_metrics", where)
    assert not readiness.reasons()


def test_what_was_not_told_yet_does_not_count(deployment: Deployment) -> None:
    deployment.start()
    deployment.release("2.0", ["2.0"])
    assert not Readiness(deployment.server).reasons(), "the next start is for that"


def test_a_version_that_should_be_served_and_is_not(deployment: Deployment) -> None:
    deployment.start()
    deployment.release("2.0", ["2.0"])
    shutil.copy(deployment.place.releases, deployment.place.served)
    (missing,) = Readiness(deployment.server).reasons()
    assert "answers 404: Model version: 2.0 does not exist" in missing
    wait_for(lambda: ask(deployment)[1]["reasons"] == [missing])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_that_torchserve_has_given_up_are_revived(
    deployment: Deployment, tmp_path: Path, workers: int
) -> None:
    """Workers can't start while a file is there; TorchServe stops trying after 8 s."""
    broken = tmp_path / "broken"

    def impatient(name: str, data: bytes) -> bytes:
        if name == "model-config.yaml":
            settings = yaml.safe_load(data) | {"maxRetryTimeoutInSec": 8}
            return yaml.safe_dump(settings).encode()
        if name == "handler/answer.py":
            return data + f"\nimport os\nassert not os.path.exists({str(broken)!r})\n".encode()
        return data

    edit(deployment.place.model_store / "cifar10-1.0.mar", impatient)
    deployment.release("1.0", ["1.0"], workers=workers)
    deployment.start()
    broken.touch()
    psutil.Process(ready_workers(deployment)[0]).kill()
    wait_for(lambda: "TorchServe has given up" in monitor_log(deployment))
    assert f"has {workers - 1} of {workers} workers READY" in monitor_log(deployment)
    if workers == 2:
        assert deployment.predict(SAMPLE.read_bytes()).ok, "the other goes on"
    broken.unlink()
    wait_for(lambda: len(ready_workers(deployment)) >= workers)
    assert deployment.predict(SAMPLE.read_bytes()).ok
    wait_for(lambda: "READY workers again" in monitor_log(deployment))


def test_the_monitor_ends_with_the_server(deployment: Deployment) -> None:
    deployment.start()
    state = deployment.place.state.read_text()
    assert find(yaml.safe_load(state)["monitor"]) is not None
    deployment.stop()
    assert find(yaml.safe_load(state)["monitor"]) is None


def test_a_monitor_that_nobody_needs_ends(deployment: Deployment) -> None:
    deployment.start()
    state = json.loads(deployment.place.state.read_text())
    deployment.place.state.write_text(json.dumps(state | {"monitor": "1 2 another"}))
    wait_for(lambda: find(state["monitor"]) is None)
    with pytest.raises(ServerError, match="its monitor has ended"):
        deployment.server.check()


def test_a_monitor_that_cannot_start_is_told(deployment: Deployment) -> None:
    deployment.start()
    with pytest.raises(ServerError, match=r"monitor can't start: .*Address already in use"):
        monitor.start(deployment.place)


def test_the_monitor_outlives_who_started_it(deployment: Deployment) -> None:
    started = classifier(*deployment.options, "serve")
    assert started.returncode == 0, started.stderr
    assert ask(deployment)[0] == 200
    process = find(yaml.safe_load(deployment.place.state.read_text())["monitor"])
    assert process is not None
    assert os.getsid(process.pid) == process.pid


def test_unpacked_archives_are_kept_from_the_system_that_cleans_up(deployment: Deployment) -> None:
    """By a lock that systemd-tmpfiles respects."""
    deployment.start()
    folder = deployment.server.state.temporary
    assert folder is not None
    opened = os.open(folder, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    deployment.stop()
    fcntl.flock(opened, fcntl.LOCK_EX)  # waits: what a process held may outlive it for a moment
    os.close(opened)


def test_a_version_that_is_gone_does_not_keep_it_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look_at(_: Reviver, __: str, version: str, ___: int) -> None:
        seen.append(version)
        if version == "1.0":
            raise ServerError("Model version: 1.0 does not exist")
        (tmp_path / "run").rmdir()  # which ends it

    (tmp_path / "run").mkdir()
    server = mock.Mock(is_draining=False)
    server.state.monitor = None
    server.place.run = tmp_path / "run"
    server.served = [Release("cifar10", "2.0", ("1.0", "2.0"), workers=1)]
    monkeypatch.setattr(Reviver, "_look_at", look_at)
    monkeypatch.setattr(monitor, "PERIOD", 0)
    monkeypatch.setattr(monitor, "_recover", lambda _: None)
    monitor._watch(server)
    assert seen == ["1.0", "2.0"]
