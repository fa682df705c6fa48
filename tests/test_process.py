"""Processes: known again, ended with all that they started, and one at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from classifier.errors import ServerError
from classifier.process import end, ended, exclusive, find, identity, wait

from .test_monitor import wait_for

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
LAST_ACT = """
import pathlib, signal, subprocess, sys
def last(*_):
    pathlib.Path(sys.argv[1]).write_text(str(subprocess.Popen(["sleep", "600"]).pid))
    sys.exit()
signal.signal(signal.SIGTERM, last)
print("ready", flush=True)
while True:
    signal.pause()
"""
"""A program that starts another while it ends."""
STUBBORN = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while True:
    signal.pause()
"""
"""A program that does not end when it is asked to."""
ORDERLY = """
import signal, time
from classifier.process import end_in_order
end_in_order()
try:
    print("ready", flush=True)
    while True:
        signal.pause()
finally:
    time.sleep(0.5)
    print("clean", flush=True)
"""
ORDERLY_COMMAND = [sys.executable, "-c", ORDERLY]


def test_what_it_started_while_it_ended_ends_too(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    command = [sys.executable, "-c", LAST_ACT, str(noted)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        end(psutil.Process(program.pid), deadline=30)
    child = int(noted.read_text())
    assert not psutil.pid_exists(child) or ended(psutil.Process(child))


def test_others_of_our_own_session_go_on() -> None:
    with subprocess.Popen(SLEEP) as other:
        try:
            with subprocess.Popen(SLEEP) as program:
                end(psutil.Process(program.pid), deadline=30)
            assert other.poll() is None
        finally:
            other.kill()


def test_what_does_not_end_is_killed() -> None:
    command = [sys.executable, "-c", STUBBORN]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        stubborn = psutil.Process(program.pid)
        end(stubborn, deadline=0.3)
        try:
            assert not wait([stubborn], 30)
        finally:
            program.kill()


def test_a_process_is_known_by_more_than_its_number() -> None:
    known = identity(os.getpid())
    assert known is not None
    process = find(known)
    assert process is not None
    assert process.pid == os.getpid()
    pid, start, boot = known.split()
    for other in (f"{pid} {int(start) + 1} {boot}", f"{pid} {start} another", None):
        assert find(other) is None


def test_one_that_has_ended_is_none_though_nobody_has_asked_for_its_end() -> None:
    with subprocess.Popen(["/bin/true"]) as program:
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{program.pid}").exists()
        assert identity(program.pid) is None


def test_one_runs_as_long_as_any_of_its_threads() -> None:
    code = """
import ctypes, threading
threading.Thread(target=input).start()
ctypes.CDLL(None).syscall(60, 0)  # exit, of this thread alone
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as started:
        process = psutil.Process(started.pid)
        wait_for(lambda: process.status() == psutil.STATUS_ZOMBIE)
        assert not ended(process)
        started.communicate(b"\n", timeout=30)
        assert ended(process)


def test_a_lock_can_be_taken_by_who_may_only_read_its_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("root has written this")
    with exclusive(path, "taken"):
        held = [file for file in psutil.Process().open_files() if file.path == str(path)]
    assert [file.mode for file in held] == ["r"]
    assert path.read_text() == "root has written this"


def test_another_is_waited_for_as_long_as_is_said(tmp_path: Path) -> None:
    path, inside, leave = tmp_path / "run" / "lock", threading.Event(), threading.Event()

    def other() -> None:
        with exclusive(path, "it is free"):
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(30)
    for patience in (0, 0.2):
        with pytest.raises(ServerError, match="taken"), exclusive(path, "taken", patience):
            pass
    threading.Timer(0.3, leave.set).start()
    with exclusive(path, "taken", patience=30):
        assert leave.is_set()
    thread.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_is_asked_to_end_cleans_up(number: signal.Signals) -> None:
    with subprocess.Popen(ORDERLY_COMMAND, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        program.send_signal(number)
        program.send_signal(number)
        assert program.stdout.read() == b"clean\n"
    assert program.returncode == 128 + number


def test_who_runs_on_without_a_terminal_runs_on() -> None:
    with subprocess.Popen(
        ["/usr/bin/env", "nohup", *ORDERLY_COMMAND], stdout=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        program.send_signal(signal.SIGHUP)
        program.send_signal(signal.SIGTERM)
        program.wait()
    assert program.returncode == 128 + signal.SIGTERM
