"""`classifier serve --foreground`: what a container runs."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from classifier.process import find, identity
from classifier.process import wait as wait_until_ended
from classifier.serving import log, monitor
from classifier.serving.follow import Follower
from classifier.serving.foreground import LOG_LINES, _exit_code

from .chaos.load import load_on
from .test_lifecycle import logs_to
from .test_monitor import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .deployment import Deployment

WARNING = re.compile(r"\S+ (WARN|ERROR) |.* Worker disconnected\. WORKER_MODEL_LOADED")


def ready_status(deployment: Deployment) -> int | None:
    """Return the status of /ready; None where nobody answers."""
    try:
        return httpx.get(deployment.server.readiness, timeout=30).status_code
    except httpx.TransportError:
        return None


def is_replaced(deployment: Deployment, pid: int) -> bool:
    workers = deployment.server.management.workers("cifar10", "1.0")
    return [w.pid for w in workers if w.is_ready] not in ([], [pid])


class Foreground:
    """A `classifier serve --foreground` that runs."""

    def __init__(self, deployment: Deployment, *options: str) -> None:
        self.deployment = deployment
        command = [sys.executable, "-m", "classifier", *deployment.options, "serve", "--foreground"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([*command, *options], stdout=pipe, stderr=pipe, text=True)

    def wait_until_ready(self) -> None:
        """Wait until it serves; fail if it ends before that."""

        def ready() -> bool:
            assert self.process.poll() is None, self.process.communicate()
            told = find(self.deployment.server.state.monitor) is not None
            return told and ready_status(self.deployment) == 200

        wait_for(ready)

    def family(self, least: int = 3) -> list[psutil.Process]:
        """Return its descendants: TorchServe, its workers, the monitor."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        assert len(found) >= least, found
        return found

    def end(self) -> tuple[int, str, str]:
        """Wait for its end; return exit status, stdout and stderr."""
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err


@pytest.fixture
def served(deployment: Deployment) -> Iterator[Foreground]:
    """A server in the foreground that is ready."""
    running = Foreground(deployment, "--grace=0.5")
    running.wait_until_ready()
    yield running
    if running.process.poll() is None:
        running.process.terminate()
        running.end()


def assert_nothing_is_left(deployment: Deployment, family: list[psutil.Process]) -> None:
    assert not wait_until_ended(family, 0)
    assert not [p for p in psutil.process_iter() if logs_to(p) == deployment.place.logs.resolve()]
    assert not deployment.place.state.exists()


def test_a_signal_stops_it_and_no_request_is_lost(deployment: Deployment) -> None:
    running = Foreground(deployment, "--grace=10")
    running.wait_until_ready()
    family = running.family()
    with load_on(deployment.inference, seed=1, clients=4) as load:
        load.wait_for(50)
        running.process.send_signal(signal.SIGTERM)
        wait_for(lambda: ready_status(deployment) == 503)  # a load balancer sends no more now
        load.wait_for(10)
    code, out, err = running.end()
    assert code == 0, err
    assert not load.failures
    assert not load.lost
    first, *_, last = out.splitlines()
    assert first == "Starting TorchServe …"
    assert "cifar10 1.0 (default) at " in out
    assert "SIGTERM: what has come is answered first" in out
    assert last == "TorchServe has stopped."
    assert_nothing_is_left(deployment, family)


def test_a_terminal_that_closes_stops_it_too(deployment: Deployment, served: Foreground) -> None:
    family = served.family()
    served.process.send_signal(signal.SIGHUP)
    code, _, err = served.end()
    assert code == 0, err
    assert_nothing_is_left(deployment, family)


def test_ctrl_c_stops_it_too_and_a_second_one_changes_nothing(
    deployment: Deployment, served: Foreground
) -> None:
    family = served.family()
    served.process.send_signal(signal.SIGINT)
    assert served.process.stdout is not None
    wait_for(lambda: "SIGINT" in served.process.stdout.readline())  # type: ignore[union-attr]
    served.process.send_signal(signal.SIGINT)
    code, _, err = served.end()
    assert code == 0, err
    assert_nothing_is_left(deployment, family)


def test_it_stops_well_though_nobody_reads_what_it_says(
    deployment: Deployment, served: Foreground
) -> None:
    assert served.process.stdout is not None
    assert served.process.stderr is not None
    served.process.stdout.close()
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(120) == 0
    served.process.stderr.close()
    assert not deployment.place.state.exists(), "it was stopped, and not merely ended"


def test_a_signal_while_it_starts_ends_it(deployment: Deployment) -> None:
    running = Foreground(deployment)
    wait_for(lambda: deployment.server.process() is not None)
    family = running.family(least=1)
    running.process.terminate()
    code, _, err = running.end()
    assert code == 0, err
    assert_nothing_is_left(deployment, family)


def test_a_torchserve_that_is_killed_is_told_and_leaves_nothing(
    deployment: Deployment, served: Foreground
) -> None:
    family = served.family()
    process = deployment.server.process()
    assert process is not None
    process.kill()
    code, out, err = served.end()
    assert code == 1
    *log_end, reason = err.splitlines()
    logs = deployment.place.logs
    assert reason == f"classifier: TorchServe ended by itself, by SIGKILL (see {logs})"
    text = (logs / log.FILE).read_text()
    assert text.endswith("".join(f"{line}\n" for line in log_end))
    assert len(log_end) == LOG_LINES
    assert "has stopped" not in out
    assert_nothing_is_left(deployment, family)


def test_the_way_a_process_ended_is_known_only_when_its_last_thread_has_ended() -> None:
    end_of_first_thread = (
        "import ctypes, os, platform, signal, sys, threading, time;"
        "end = lambda: (sys.stdin.read(), time.sleep(0.5), os.kill(os.getpid(), signal.SIGKILL));"
        "threading.Thread(target=end).start();"
        "ctypes.CDLL(None).syscall({'x86_64': 60}.get(platform.machine(), 93), 0)"
    )
    command = [sys.executable, "-c", end_of_first_thread]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        known = identity(process.pid)
        wait_for(lambda: find(known) is None)
        assert process.poll() is None, "no thread is left"
        process.stdin.close()
        assert _exit_code(process.pid) == -signal.SIGKILL
    assert _exit_code(process.pid) is None, "it is no child any more"


def test_it_ends_with_its_monitor(deployment: Deployment, served: Foreground) -> None:
    family = served.family()
    watcher = find(deployment.server.state.monitor)
    assert watcher is not None
    watcher.kill()
    code, _, err = served.end()
    assert code == 1
    assert "classifier: the monitor ended by itself" in err
    assert_nothing_is_left(deployment, family)


def test_stopped_from_elsewhere_it_ends_well(deployment: Deployment, served: Foreground) -> None:
    family = served.family()
    command = [sys.executable, "-m", "classifier", *deployment.options, "stop"]
    subprocess.run(command, check=True, timeout=120)
    code, out, err = served.end()
    assert code == 0, err
    assert out.endswith("TorchServe has stopped.\n")
    assert_nothing_is_left(deployment, family)


def test_what_it_adopts_leaves_no_zombie() -> None:
    """As a container's first process it is the parent of what nobody else takes leave of."""
    orphaning = """
import subprocess, time
from classifier.serving import foreground

foreground._adopt_orphans()
orphan = subprocess.run(["sh", "-c", "(sleep 0.2; exit 7) & echo $!"], capture_output=True).stdout
while not (codes := foreground._reap()):
    time.sleep(0.01)
print(codes == {int(orphan): 7}, foreground._reap())
"""
    done = subprocess.run([sys.executable, "-c", orphaning], stdout=subprocess.PIPE, timeout=60)
    assert done.stdout == b"True {}\n"


def test_torchserve_is_its_child(deployment: Deployment, served: Foreground) -> None:
    """Else it could not tell how TorchServe ended, and would leave the workers of a dead one."""
    children = psutil.Process(served.process.pid).children()
    assert deployment.server.process() in children
    assert find(deployment.server.state.monitor) in children


def test_warnings_and_errors_reach_stdout(deployment: Deployment, served: Foreground) -> None:
    management, watched = deployment.server.management, deployment.place.logs / monitor.LOG
    (worker,) = management.workers("cifar10", "1.0")
    psutil.Process(worker.pid).kill()
    wait_for(lambda: is_replaced(deployment, worker.pid) and ready_status(deployment) == 200)
    # The monitor looks every other second, in which a dead worker may be replaced.
    management.scale("cifar10", "1.0", 0)
    wait_for(lambda: "0 of 1 workers READY" in watched.read_text())
    management.scale("cifar10", "1.0", 1)
    wait_for(lambda: ready_status(deployment) == 200)
    served.process.terminate()
    code, out, err = served.end()
    assert code == 0, err
    written = (deployment.place.logs / log.FILE).read_text()
    told = [line for line in written.splitlines() if WARNING.match(line)]
    assert told, "the death of a worker is worth a line"
    assert [line for line in told if line not in out.splitlines()] == []
    lines = watched.read_text().splitlines()
    assert [line for line in out.splitlines() if line in lines] == lines, "others lie between"


def test_a_server_that_runs_already_is_left_alone(deployment: Deployment) -> None:
    deployment.start()
    code, _, err = Foreground(deployment).end()
    assert (code, err) == (1, "classifier: TorchServe is up already: `classifier stop` ends it\n")
    deployment.server.check()


def test_a_start_that_fails_is_told(deployment: Deployment) -> None:
    with deployment.place.config.open("a") as file:
        file.write("vmargs=-XX:NoSuchFlag\n")
    code, out, err = Foreground(deployment).end()
    assert code == 1
    assert "TorchServe ended while it started" in err.splitlines()[-1]
    assert "NoSuchFlag" in out, "what Java itself printed"
    assert "Traceback" not in err


def test_grace_goes_with_the_foreground(deployment: Deployment) -> None:
    failed = subprocess.run(
        [sys.executable, "-m", "classifier", *deployment.options, "serve", "--grace=5"],
        capture_output=True,
        text=True,
    )
    assert failed.returncode == 2
    assert "--grace goes with --foreground" in failed.stderr


def test_a_followed_file_may_rotate_and_end_without_a_newline(tmp_path: Path) -> None:
    path, copied = tmp_path / "a.log", io.BytesIO()
    path.write_text("before\n")
    with Follower(path, copied):
        with path.open("a") as file:
            file.write("one\ntw")
            file.flush()
            wait_for(lambda: copied.getvalue() == b"one\n")
            file.write("o\n")
        path.rename(tmp_path / "a.log.1")
        path.write_text("three\n")
        wait_for(lambda: copied.getvalue() == b"one\ntwo\nthree\n")
    assert copied.getvalue() == b"one\ntwo\nthree\n"


def test_a_followed_file_may_come_later(tmp_path: Path) -> None:
    path, copied = tmp_path / "a.log", io.BytesIO()
    with Follower(path, copied):
        path.write_text("one\nnot yet")
    assert copied.getvalue() == b"one\n"
