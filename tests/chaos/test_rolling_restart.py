"""Two servers behind nginx are restarted, one after the other, under load."""

from __future__ import annotations

import contextlib
import getpass
import http.client
import json
import os
import shutil
import subprocess
from collections import Counter
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from classifier.serving import ports

from ..conftest import do_without
from ..deployment import Deployment
from ..images import SAMPLE
from ..test_monitor import wait_for
from .load import assert_all_right, load_on

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GRACE = 5.0  # seconds
SAID = "servers.log"
"""nginx's file of what the servers said to each request: a status, or several if it asked again."""


@pytest.fixture
def servers(store: Path, tmp_path: Path) -> Iterator[list[Deployment]]:
    """Two servers of the released model."""
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made.append(Deployment(tmp_path / name))
        made[-1].add(store / "cifar10-1.0.mar")
    try:
        for server in made:
            server.start()
        yield made
    finally:
        for server in made:
            server.stop()


@contextmanager
def behind_nginx(servers: list[Deployment], folder: Path) -> Iterator[tuple[str, Path]]:
    """Run deploy/nginx before servers; yield its address and its list of those that are ready."""
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        do_without("nginx is not installed")
    shutil.copytree("deploy/nginx", folder)
    (folder / "tmp").mkdir()
    (port,) = ports.free(1)
    path = folder / "nginx.conf"
    config = path.read_text().replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    logged = f"log_format servers '$upstream_status'; access_log {SAID} servers;"
    path.write_text(config.replace("access_log off;", logged))
    pairs = [
        f"{server.inference.removeprefix('http://')}={server.server.readiness}"
        for server in servers
    ]
    command = ["sh", "upstreams.sh", *pairs]
    subprocess.run(command, cwd=folder, env={**os.environ, "ONCE": "1"}, check=True)
    running = [
        nginx,
        "-p",
        str(folder),
        "-c",
        "nginx.conf",
        "-g",
        f"daemon off; user {getpass.getuser()};",
    ]
    with subprocess.Popen(running) as proxy, subprocess.Popen(command, cwd=folder) as watcher:
        try:
            wait_for((folder / "nginx.pid").exists)
            yield f"http://127.0.0.1:{port}", folder / "upstreams.conf"
        finally:
            watcher.terminate()
            proxy.terminate()


def is_in(where: str, upstreams: Path) -> bool:
    return where in upstreams.read_text()


def is_nginx_own(failure: str) -> bool:
    """Tell whether a client's connection was closed by nginx: a server's failure would be a 502.

    At a reload its old processes close connections that wait for a request, even if one has just
    been sent (before 1.27.4; then keepalive_min_timeout). If nginx had not read it yet, the kernel
    resets the connection. A client sends it again.
    """
    causes = ("Server disconnected without sending a response", "Connection reset by peer")
    return any(cause in failure for cause in causes)


def answers_an_explanation(address: str) -> bool:
    """Tell whether it is to be had by a path that TorchServe reads otherwise than nginx."""
    where = urlsplit(address)
    with contextlib.closing(http.client.HTTPConnection(where.hostname or "", where.port)) as asked:
        path = "/explanations/cifar10/1.0/../../../predictions/cifar10"
        asked.request("POST", path, SAMPLE.read_bytes())  # as it is: others would resolve it
        answer = asked.getresponse()
        told = json.loads(answer.read())
        assert answer.status == 200
    return "cat" not in told


def test_rolling_restart(
    servers: list[Deployment], tmp_path: Path, long: bool, seed: int, figures: dict[str, Any]
) -> None:
    rounds = 3 if long else 1
    with (
        behind_nginx(servers, tmp_path / "nginx") as (address, upstreams),
        load_on(address, seed, clients=4) as load,
    ):
        load.wait_for(100)
        assert not answers_an_explanation(address)
        for server in rounds * servers:
            where = server.inference.removeprefix("http://")
            server.server.stop(GRACE)
            assert where not in upstreams.read_text(), "it was out before it ended"
            load.wait_for(50)
            server.start()
            wait_for(partial(is_in, where, upstreams))
            load.wait_for(50)
    said = Counter((tmp_path / "nginx" / SAID).read_text().splitlines())
    figures |= {
        "restarts": 2 * rounds,
        "requests answered": len(load.answers),
        "requests lost": len(load.lost),
        "asked again by nginx": sum("," in statuses for statuses in said.elements()),
        "failed, and asked again by the client": len(load.failures),
    }
    assert_all_right(load, servers[0].place.model_store / "cifar10-1.0.mar")
    assert set(said) == {"200"}, f"a server failed while it was stopped: {said}"
    failures = [text for text in load.failures if not is_nginx_own(text)]
    assert not failures, failures[:3]
