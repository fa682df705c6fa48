"""Processes: know one again, end it and what it started, and keep others out."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from .errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


ENDS = (signal.SIGTERM, signal.SIGHUP)
"""Signals that ask for the end, besides Ctrl-C."""
POLL = 0.1  # seconds


def identity(pid: int) -> str | None:
    """Return what only this process has: its number, start and boot; None where there is none.

    The start is the kernel's count since the boot: unlike a time, it does not move with the clock.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return None if state in "ZX" else f"{pid} {fields[18]} {boot}"


def find(known: str | None) -> psutil.Process | None:
    """Return the process of an identity, or None where it runs no more."""
    if known is None:
        return None
    pid = int(known.split()[0])
    if identity(pid) != known:
        return None
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:  # it has ended since
        return None


def end_in_order(end: Callable[[int], object] = lambda number: sys.exit(128 + number)) -> None:
    """Let the first signal that asks for the end raise something, so that `finally` blocks run.

    Those that follow are ignored: a terminal that closes may send SIGHUP twice. Who runs under
    nohup has that ignored, and it stays so.
    """
    numbers = [n for n in ENDS if signal.getsignal(n) is not signal.SIG_IGN]

    def once(number: int, _: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        end(number)

    for number in numbers:
        signal.signal(number, once)


def end(process: psutil.Process, deadline: float) -> None:
    """End a process and all that it starts; what still runs after `deadline` s is killed.

    What it starts while it ends, as TorchServe may a worker, is known by its session alone: so
    that goes too, unless it is our own.
    """
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        session = os.getsid(process.pid)
        family = [process, *process.children(recursive=True)]
        process.terminate()
        _kill(wait(family, deadline), deadline)
        if session != os.getsid(0):
            _kill(_members(session), deadline)


def _members(session: int) -> list[psutil.Process]:
    """Return the processes of a session."""

    def belongs(member: psutil.Process) -> bool:
        try:
            return os.getsid(member.pid) == session
        except OSError:  # it has ended since
            return False

    return [member for member in psutil.process_iter() if belongs(member)]


def _kill(processes: list[psutil.Process], deadline: float) -> None:
    """Kill processes and wait for their end, for `deadline` s at most."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    wait(processes, deadline)


@contextlib.contextmanager
def exclusive(path: Path, refusal: str, patience: float = 0) -> Iterator[None]:
    """Keep other processes out meanwhile; the kernel lets them in again, even after a kill.

    Args:
        path: of the file that is locked.
        refusal: what to say where another is inside.
        patience: seconds to wait until it has left.

    Raises:
        ServerError: another is inside.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + patience
    # To read only: then others can lock a file that root has made.
    with open(os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)) as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise ServerError(refusal) from None
                time.sleep(POLL)
        yield


def wait(processes: list[psutil.Process], deadline: float) -> list[psutil.Process]:
    """Wait until processes have ended, for `deadline` s at most; return those that have not.

    A zombie has ended.
    """
    _, alive = psutil.wait_procs([p for p in processes if not ended(p)], timeout=0)
    step = 0.1
    while alive and deadline > 0:
        psutil.wait_procs(alive, timeout=step)
        alive = [p for p in alive if not ended(p)]
        deadline -= step
    return alive


def ended(process: psutil.Process) -> bool:
    """Tell whether a process has ended, perhaps waiting for its parent to notice.

    One whose first thread is gone is called a zombie, though others may hold its ports still.
    """
    try:
        if not process.is_running():
            return True
        return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
    except psutil.NoSuchProcess:
        return True
