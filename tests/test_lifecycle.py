"""Start and stop: by the command, by hand, and everything that can go wrong at the start."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
import requests

from classifier.archiving import archive as archives
from classifier.archiving import store
from classifier.errors import ServerError
from classifier.process import ended
from classifier.serving import config, java, launch, rollout, server
from classifier.serving.server import Server
from classifier.tokens import Kind

from .deployment import Deployment
from .images import SAMPLE

if TYPE_CHECKING:
    from collections.abc import Callable


COMMAND = (str(Path(sys.executable).parent / "classifier"),)
"""The installed command."""


def classifier(*arguments: str, stdin: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the installed command."""
    command = [*COMMAND, *arguments]
    with Path(stdin or os.devnull).open("rb") as file:
        return subprocess.run(command, stdin=file, capture_output=True, text=True, timeout=240)


def edit(archive: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Change the members of an archive."""
    with zipfile.ZipFile(archive) as packed:
        members = {name: packed.read(name) for name in packed.namelist()}
    with zipfile.ZipFile(archive, "w") as packed:
        for name, data in members.items():
            packed.writestr(name, change(name, data))


def edit_handler(archive: Path, lines: bytes, instead: bytes) -> None:
    """Put other lines in the place of some of an archive's handler."""

    def edited(name: str, data: bytes) -> bytes:
        if name != "classifier_handler.py":
            return data
        assert lines in data
        return data.replace(lines, instead)

    edit(archive, edited)


def assert_fails(deployment: Deployment, message: str) -> None:
    """Fail unless the start fails for that reason and leaves nothing behind."""
    with pytest.raises(ServerError, match=message):
        deployment.start()
    assert deployment.server.process() is None
    assert not [p for p in psutil.process_iter() if logs_to(p) == deployment.place.logs.resolve()]


def logs_to(member: psutil.Process) -> Path | None:
    """Return where a process of a TorchServe, Java or worker, writes its logs."""
    try:
        return Path(member.environ().get("LOG_LOCATION", ""))
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def test_serve_serve_again_status_and_stop(deployment: Deployment) -> None:
    first = classifier(*deployment.options, "serve")
    assert first.returncode == 0, first.stderr
    assert "cifar10 1.0 (default)" in first.stdout
    assert "cat " in first.stdout
    assert f"curl -T {SAMPLE} {deployment.inference}/predictions/cifar10" in first.stdout
    process = deployment.server.process()
    assert process is not None
    family = [process, *process.children(recursive=True)]

    again = classifier(*deployment.options, "serve")
    assert again.returncode == 0
    assert "is up already" in again.stdout
    assert deployment.server.process() == process
    assert classifier(*deployment.options, "status").returncode == 0
    status = json.loads(classifier(*deployment.options, "status", "--json").stdout)
    assert status["problem"] is None
    assert [(r["model"], r["default"]) for r in status["released"]] == [("cifar10", "1.0")]

    stopped = classifier(*deployment.options, "stop")
    assert "has stopped" in stopped.stdout
    assert all(ended(member) for member in family)
    assert "was not running" in classifier(*deployment.options, "stop").stdout
    said = classifier(*deployment.options, "stop", "--json")
    assert json.loads(said.stdout) == {"stopped": False}
    said = classifier(*deployment.options, "status", "--json")
    assert (said.returncode, json.loads(said.stdout)["problem"]) == (
        1,
        "TorchServe is not running.",
    )


def test_stop_ends_nothing_that_it_did_not_start(deployment: Deployment) -> None:
    deployment.start()
    state = deployment.place.state
    process = deployment.server.process()
    assert process is not None
    # The number of a process that ended long ago may be another's by now.
    noted = json.loads(state.read_text())
    other = {**noted, "identity": f"{process.pid} 1 another-boot", "temporary": "/nowhere"}
    state.write_text(json.dumps(other))
    assert not deployment.server.stop()
    assert process.is_running()
    state.write_text(json.dumps(noted))


def test_stop_needs_no_releases_and_no_configuration(deployment: Deployment) -> None:
    deployment.start()
    process = deployment.server.process()
    assert process is not None
    deployment.place.releases.write_text("no toml")
    deployment.place.config.unlink()
    assert classifier(*deployment.options, "stop").returncode == 0
    assert ended(process)


def test_a_server_that_does_not_answer_is_told(deployment: Deployment) -> None:
    deployment.start()
    process = deployment.server.process()
    assert process is not None
    generated = deployment.place.generated
    moved = generated.read_text().replace(deployment.management, "http://127.0.0.1:9")
    generated.write_text(moved)
    for command in ("serve", "status"):
        failed = classifier(*deployment.options, command)
        assert failed.returncode == 1
        assert "the server runs, but does not answer" in failed.stderr
        assert "Traceback" not in failed.stderr


def test_a_proxy_in_the_environment_does_not_matter(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    served = classifier(*deployment.options, "serve")
    assert served.returncode == 0, served.stderr


def test_serving_again_tells_of_a_changed_archive(deployment: Deployment) -> None:
    deployment.start()
    edit(deployment.place.model_store / "cifar10-1.0.mar", lambda name, data: data)
    again = classifier(*deployment.options, "serve")
    assert again.returncode == 1
    assert "cifar10-1.0.mar has changed since the server started" in again.stderr


def test_a_start_while_another_is_under_way_is_refused(deployment: Deployment) -> None:
    deployment.place.run.mkdir()
    with (deployment.place.run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        failed = classifier(*deployment.options, "serve")
    assert failed.returncode == 1
    assert "another start" in failed.stderr


def test_the_last_logs_are_kept(deployment: Deployment) -> None:
    deployment.start()
    deployment.stop()
    text = (deployment.place.logs / "torchserve.log").read_text()
    deployment.start()
    assert (deployment.place.run / "logs.last" / "torchserve.log").read_text() == text


def test_a_snapshot_of_torchserve_never_wins(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TorchServe starts from the last one that it finds with its logs, unless it is told not to."""
    archives.build("cifar10", "2.0", Path(archives.WEIGHTS), deployment.place.model_store)
    deployment.start()
    deployment.stop()
    deployment.release("2.0", ["2.0"])
    place, environment = deployment.place, launch._environment
    stale = config.generate(
        deployment.server.properties,
        deployment.server.releases,
        place.model_store.resolve(),
        place.model_config,
        place.run,
    )
    deployment.release("1.0", ["1.0"])

    def planted(*arguments: Any) -> dict[str, str]:
        (place.logs / "config").mkdir()
        for name in ("20991231235959999-shutdown.cfg", "20991231235959999-startup.cfg"):
            (place.logs / "config" / name).write_text(stale)
        return environment(*arguments)

    monkeypatch.setattr(launch, "_environment", planted)  # at the last moment before TorchServe
    deployment.start()
    management = deployment.server.management
    assert management.versions("cifar10") == {"1.0": 1}
    assert management.default("cifar10") == "1.0"


def test_a_stop_gives_up_waiting_for_a_worker_that_is_stuck(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle: list[bool] = []
    wait = rollout.wait_until_idle

    def told(*arguments: Any) -> bool:
        idle.append(wait(*arguments))
        return idle[-1]

    monkeypatch.setattr(rollout, "wait_until_idle", told)
    monkeypatch.setattr(server, "STOP_DEADLINE", 5.0)  # until what does not end is killed
    deployment.start()
    process = deployment.server.process()
    assert process is not None
    family = [process, *process.children(recursive=True)]
    (worker,) = deployment.server.management.workers("cifar10", "1.0")
    psutil.Process(worker.pid).suspend()
    with ThreadPoolExecutor() as pool:
        stuck = pool.submit(deployment.predict, SAMPLE.read_bytes())
        assert deployment.server.stop(deadline=1)
        assert isinstance(stuck.exception(), requests.ConnectionError), "it got no answer"
    assert idle == [False], "what the worker had was given up"
    assert worker.pid in {member.pid for member in family}
    assert all(ended(member) for member in family)


def test_an_archive_of_older_code_is_built_anew(deployment: Deployment) -> None:
    path = deployment.place.model_store / "cifar10-1.0.mar"
    current = path.read_bytes()
    edit(path, lambda name, data: data + b"# older" if name == "model/net.py" else data)
    served = classifier(*deployment.options, "serve")
    assert f"Built {path}" in served.stdout
    assert path.read_bytes() == current


def test_serving_again_tells_of_newer_code(deployment: Deployment) -> None:
    path = deployment.place.model_store / "cifar10-1.0.mar"
    edit(path, lambda name, data: data + b"# older" if name == "model/net.py" else data)
    deployment.start()
    again = classifier(*deployment.options, "serve")
    assert again.returncode == 1
    assert "runs older code or weights" in again.stderr


def test_the_archive_command_prints_the_path_or_one_line(tmp_path: Path) -> None:
    built = classifier(f"--store={tmp_path}", "archive", "--version=2.0")
    path = tmp_path / "cifar10-2.0.mar"
    assert built.stdout == f"{path}\n"
    again = classifier(f"--store={tmp_path}", "archive", "--version=2.0", "--json")
    assert json.loads(again.stdout) == {
        "archive": str(path),
        "model": "cifar10",
        "version": "2.0",
        "size": path.stat().st_size,
        "sha256": store.sha256(path),
    }
    for options in (["--version=two"], ["--weights=absent.pth"]):
        failed = classifier(f"--store={tmp_path}", "archive", *options)
        assert failed.returncode == 1
        assert failed.stderr.startswith("classifier: ")
        assert failed.stderr.count("\n") == 1


def test_make_takes_its_arguments_from_the_command_line_alone() -> None:
    environment = {**os.environ, "VERSION": "22.04", "NAME": "a machine's", "DATA": "/x"}
    make = ["/usr/bin/make", "--no-print-directory", "-n", "-o", ".venv/.ready"]

    def would_run(*arguments: str) -> str:
        done = subprocess.run(
            [*make, *arguments], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    command = [".venv/bin/python", "-m", "classifier"]
    assert would_run("archive").split() == [*command, "archive"]
    path = "it's a path/net.pth"
    words = shlex.split(would_run("archive", "VERSION=2.0", f"WEIGHTS={path}", "STORE=s"))
    options = ["--version", "2.0", "--weights", path]
    assert words == [*command, "--store", "s", "archive", *options]
    words = shlex.split(would_run("train", "EPOCHS=3", "OUT=o"))
    assert words[-4:] == ["--epochs", "3", "--out", "o"]
    assert "training.train" in words[-5]


def test_a_taken_port_is_named(deployment: Deployment) -> None:
    port = int(deployment.inference.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        failed = classifier(*deployment.options, "serve")
    assert failed.returncode == 1
    assert f"inference_address: port {port} on 127.0.0.1 can't be used" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_each_port_that_is_taken_is_named(deployment: Deployment) -> None:
    launch.check_ports(deployment.server.properties)
    for key, port in deployment.ports.items():
        taken = pytest.raises(ServerError, match=f"{key}: port {port} on 127.0.0.1 can't be used")
        with socket.create_server(("127.0.0.1", port)), taken:
            launch.check_ports(deployment.server.properties)


def test_a_folder_for_temporary_files_is_no_longer_than_a_sockets_path_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for folder, used in (("/var/tmp", "/var/tmp"), ("/" + "x" * 80, "/tmp")):  # noqa: S108
        monkeypatch.setattr(tempfile, "tempdir", folder)
        made = launch.temporary_folder()
        made.rmdir()
        assert made.parent == Path(used)


def test_a_missing_archive_is_named(deployment: Deployment) -> None:
    deployment.release(default="2.0", versions=["2.0"])
    failed = classifier(*deployment.options, "serve")
    assert failed.returncode == 1
    assert "no archive of cifar10:2.0 (versions of cifar10: 1.0)" in failed.stderr


def test_a_corrupt_archive_is_named(deployment: Deployment) -> None:
    path = deployment.place.model_store / "cifar10-1.0.mar"
    path.write_bytes(path.read_bytes()[:100_000])
    failed = classifier(*deployment.options, "serve")
    assert failed.returncode == 1
    assert "cifar10-1.0.mar is damaged" in failed.stderr


def test_an_archive_that_torchserve_refuses_is_told_with_its_reason(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = deployment.place.model_store / "cifar10-1.0.mar"
    path.write_bytes(path.read_bytes()[:100_000])
    monkeypatch.setattr(store, "check", lambda *_: None)  # as if it were damaged after the check
    assert_fails(deployment, "TorchServe refused cifar10:1.0: .*unexpected EOF")


def test_a_missing_package_is_named(deployment: Deployment) -> None:
    def needs_more(name: str, data: bytes) -> bytes:
        return (
            b'"""Needs more."""\nimport absent_package\n' if name == "handler/answer.py" else data
        )

    edit(deployment.place.model_store / "cifar10-1.0.mar", needs_more)
    assert_fails(deployment, "a worker can't start: .*No module named 'absent_package'")


def test_damaged_weights_do_not_start(deployment: Deployment) -> None:
    def damaged(name: str, data: bytes) -> bytes:
        return data[:-1] + b"\x55" if name == "weights.safetensors" else data

    edit(deployment.place.model_store / "cifar10-1.0.mar", damaged)
    assert_fails(deployment, r"a worker can't start: .*has sha256 \w+, but weights\.lock says")


def test_a_server_that_dies_at_the_start_is_no_success(deployment: Deployment) -> None:
    with deployment.place.config.open("a") as file:
        file.write("vmargs=-XX:NoSuchFlag\n")
    assert_fails(
        deployment, "TorchServe ended while it started: .*(NoSuchFlag|Java Virtual Machine)"
    )


def test_the_committed_configuration_stands_alone(deployment: Deployment) -> None:
    """As in README, "By hand"."""
    with deployment.by_hand(Path("config.properties")):
        answer = deployment.wait_for_answer(SAMPLE.read_bytes())
        assert next(iter(answer.json())) == "cat"
        assert answer.headers["X-Model-Version"] == "1.0"
        assert deployment.describe()["minWorkers"] == 2


def written_json(path: Path) -> dict[str, Any]:
    """Wait until a file is there and whole."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            return dict(json.loads(path.read_text()))
        time.sleep(0.1)
    pytest.fail(f"{path} was not written")


def test_the_production_configuration_wants_tokens_and_takes_no_models(
    deployment: Deployment,
) -> None:
    image, url = SAMPLE.read_bytes(), f"{deployment.management}/models"
    with deployment.by_hand(Path("deploy/config.properties")) as folder:
        keys = written_json(folder / "key_file.json")
        bearer = {
            kind: {"Authorization": f"Bearer {keys[kind]['key']}"}
            for kind in ("inference", "management")
        }
        deployment.wait_for_answer(image, headers=bearer["inference"])
        assert deployment.predict(image).status_code == 400
        assert requests.get(url, timeout=60).status_code == 400
        listed = requests.get(url, headers=bearer["management"], timeout=60)
        assert listed.status_code == 200
        registered = requests.post(
            url, params={"url": "cifar10-1.0.mar"}, headers=bearer["management"], timeout=60
        )
        assert registered.status_code == 405


def test_workers_import_from_the_archive_alone(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve from an environment without the package `classifier`, far from the checkout."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    # A path in a .pth file brings the packages, but not what they have in .pth files: this is
    # how `classifier` is installed for editing.
    (packages,) = [p for p in sys.path if p.endswith("site-packages")]
    (pth,) = environment.glob("lib/python*/site-packages")
    (pth / "packages.pth").write_text(packages)
    for name, found in (("torch", 0), ("classifier", 1), ("model", 1), ("handler", 1)):
        done = subprocess.run([python, "-c", f"import {name}"], cwd=tmp_path, capture_output=True)
        assert done.returncode == found, f"{name}: {done.stderr.decode()}"

    checkout, image = Path.cwd(), SAMPLE.read_bytes()
    shutil.copytree("deploy", tmp_path / "deploy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PYTHONPATH", str(checkout))  # must not reach the workers
    deployment.start()
    assert next(iter(deployment.predict(image).json())) == "cat"
    process = deployment.server.process()
    assert process is not None
    workers = [
        p
        for p in process.children(recursive=True)
        if any("model_service_worker" in word for word in p.cmdline())
    ]
    assert workers
    for worker in workers:
        assert worker.cmdline()[0] == str(python)
        assert str(checkout) not in worker.environ().get("PYTHONPATH", "").split(os.pathsep)


def fake_java(folder: Path, version: str) -> Path:
    """Make a Java that only tells its version."""
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("version", "used"), [("17.0.1", True), ("25", True), ("1.8.0_392", False)]
)
def test_an_own_java_is_used_where_it_is_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, used: bool
) -> None:
    own = fake_java(tmp_path, version)
    monkeypatch.setenv("JAVA_HOME", str(own))
    found, remark = java.home()
    assert (found == own) is used
    assert (remark is None) is used


def test_a_java_home_without_java_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    found, remark = java.home()
    assert java.version(found) is not None
    assert remark is not None
    assert str(tmp_path) in remark


def test_the_environment_has_a_java_for_those_who_start_by_hand() -> None:
    program = Path(sys.executable).parent / "java"
    assert subprocess.run([program, "-version"], capture_output=True).returncode == 0


def test_a_project_may_lie_in_any_folder(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spaces, and letters that are none of ASCII, where the shell's language is C, too."""
    project = tmp_path / "Jürgens Modell"
    deployment = Deployment(project)
    deployment.add(store / "cifar10-1.0.mar")
    shutil.copytree("deploy", project / "deploy")
    image = SAMPLE.read_bytes()
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.chdir(project)
    try:
        deployment.start()
        assert deployment.predict(image).ok
    finally:
        deployment.stop()


def test_who_asks_may_have_other_cores_than_the_server(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    releases = deployment.place.releases
    silent = releases.read_text().replace("workers = 1\n", "")
    releases.write_text(silent)
    monkeypatch.setattr(config, "cpu_count", lambda: 1)
    deployment.start()
    monkeypatch.setattr(config, "cpu_count", lambda: 4)
    deployment.server.check()
    assert deployment.server.release("cifar10").workers == 1
    releases.write_text(f"{silent}workers = 2\n")
    with pytest.raises(ServerError, match="has 1 of 2 workers READY"):
        deployment.server.check()


@pytest.mark.parametrize("name", ["config.properties", "releases.toml"])
def test_what_somebody_has_written_is_not_overwritten(
    deployment: Deployment, name: str, tmp_path: Path
) -> None:
    place = replace(deployment.place, run=tmp_path / "mine")
    place.run.mkdir()
    own = place.run / name
    own.write_bytes((place.releases.parent / name).read_bytes())
    if name == "releases.toml":
        place = replace(place, releases=own)
    before = own.read_bytes()
    try:
        with pytest.raises(
            ServerError, match="mine holds files of yours that would be overwritten"
        ):
            Server(place).start()
    finally:
        Server(place).stop()
    assert own.read_bytes() == before


def test_tokens_are_off_however_it_is_written(deployment: Deployment) -> None:
    said = deployment.place.config
    said.write_text(said.read_text().replace("authorization=true", "authorization=True"))
    assert deployment.server.token(Kind.MANAGEMENT) is None  # Java's parseBoolean says the same


def test_another_server_at_the_monitors_address_is_told(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = deployment.server
    assert server.readiness  # read before it is said to run
    monkeypatch.setattr(server, "process", lambda: psutil.Process())
    for said in (httpx.Response(404, text="no"), httpx.Response(200, json=["no"])):
        monkeypatch.setattr(httpx, "get", lambda *_, said=said, **__: said)
        assert "is not its monitor" in server.unready()[0]


def test_logs_may_lie_elsewhere(deployment: Deployment, tmp_path: Path) -> None:
    place, elsewhere = deployment.place, tmp_path / "volume"
    elsewhere.mkdir()
    place.run.mkdir()
    place.logs.symlink_to(elsewhere)
    for text in ("first", "second"):
        launch.prepare(place, deployment.server.properties, deployment.server.releases)
        assert not list(elsewhere.iterdir())
        (elsewhere / "torchserve.log").write_text(text)
        (elsewhere / "config").mkdir()
    launch.prepare(place, deployment.server.properties, deployment.server.releases)
    last = place.run / "logs.last"
    assert (last / "torchserve.log").read_text() == "second"
    assert place.logs.is_symlink()


def test_machines_are_told_of_an_archive_that_is_gone(deployment: Deployment) -> None:
    deployment.start()
    (deployment.place.model_store / "cifar10-1.0.mar").unlink()
    said = classifier(*deployment.options, "status", "--json")
    assert said.returncode == 1
    assert "has no archive of cifar10:1.0" in json.loads(said.stdout)["problem"]
