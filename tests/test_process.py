"""Ending a process leaves nothing of it behind."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import psutil

from classifier.process import end, ended

if TYPE_CHECKING:
    from pathlib import Path

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
