"""Serve in the foreground, as containers and service managers want it: one process to watch.

TorchServe goes into the background when it is started, and so does the monitor. Here both stay in
the care of the process that started them: it ends them when a signal comes, ends when one of them
does, and, as a container's first process must, leaves no zombie.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import psutil

from .. import process
from ..errors import ServerError
from . import log, monitor
from .follow import Follower

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from .server import Server

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
POLL = 0.2  # seconds
PATIENCE = 600.0
"""Seconds that a stop from elsewhere may take."""
LOG_LINES = 20
"""Lines from the end of TorchServe's log that are shown where it failed."""
END_DEADLINE = 5.0
"""Seconds until what TorchServe left behind is killed."""
PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h


class _Signalled(BaseException):
    """A signal asks for the end."""


def run(server: Server, grace: float, started: Callable[[], None]) -> None:
    """Start a server and stay until a signal comes; then stop it as `Server.stop` does.

    What TorchServe prints, its warnings and errors, goes to stdout, and so does the monitor's log.
    It also returns where the server is stopped from elsewhere, as by `classifier stop`.

    Args:
        server: one that does not run.
        grace: seconds between the signal and the end in which it is not ready, but still answers.
        started: called once it serves.

    Raises:
        ServerError: it runs already, does not start, or TorchServe or the monitor ended by itself.
    """
    with contextlib.ExitStack() as lock:
        lock.enter_context(server.lock())
        if server.process() is not None:
            raise ServerError("TorchServe is up already: `classifier stop` ends it")
        _adopt_orphans()
        follower = Follower(server.place.logs / monitor.LOG, sys.stdout.buffer)
        with _children_end(), follower, _first_signal_raises():
            try:
                server.start(to_stdout=True)
                lock.close()
                started()
                reason = _watch(server)
            except _Signalled as signalled:
                _say(f"{signalled}: what has come is answered first")
                lock.close()
                with server.lock(PATIENCE):
                    server.stop(grace)
                return
            except BaseException:
                with contextlib.suppress(OSError):
                    _show_log_end(server)
                lock.close()
                with server.lock(PATIENCE):
                    server.stop()
                raise
        if reason:
            raise ServerError(reason)


def _watch(server: Server) -> str | None:
    """Wait until TorchServe or the monitor ends; return why, or None if both were stopped."""
    torchserve, watcher = server.state.torchserve, server.state.monitor
    exits: dict[int, int] = {}
    while process.find(torchserve) and process.find(watcher):
        exits |= _reap()
        time.sleep(POLL)
    exits |= _reap()
    with server.lock(PATIENCE):  # whoever stops it elsewhere holds the lock until that is done
        if torchserve is None or server.state.torchserve != torchserve:
            return None
        if process.find(torchserve):
            reason = "the monitor ended by itself"
        else:
            pid = int(torchserve.split()[0])
            code = exits[pid] if pid in exits else _exit_code(pid)
            reason = f"TorchServe ended by itself{_how(code)}"
        _show_log_end(server)
        server.stop()
    return f"{reason} (see {server.place.logs})"


def _how(code: int | None) -> str:
    """Tell in words how a process ended."""
    if code is None:
        return ""
    return f", by {signal.Signals(-code).name}" if code < 0 else f", with exit status {code}"


def _exit_code(pid: int) -> int | None:
    """Wait for the code of a process that is ending; None where it's no child or takes too long.

    Its first thread is a zombie while others still end, and a code comes only with the last.
    """
    deadline = time.monotonic() + END_DEADLINE
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(POLL)
    return None


def _reap() -> dict[int, int]:
    """Take leave of children that have ended, own and adopted; return their codes by number."""
    codes: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            codes[ended[0]] = os.waitstatus_to_exitcode(ended[1])
    return codes


def _adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, as a container's first process is.

    So TorchServe, which is started by a process that ends at once, becomes a child, and tells by
    its status how it ended; and so do its workers, should it be killed.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl refuses PR_SET_CHILD_SUBREAPER")


@contextlib.contextmanager
def _children_end() -> Iterator[None]:
    """Leave nothing behind, whatever happened: a TorchServe that was killed leaves its workers."""
    try:
        yield
    finally:
        for child in psutil.Process().children():
            process.end(child, END_DEADLINE)


@contextlib.contextmanager
def _first_signal_raises() -> Iterator[None]:
    """Turn the first signal into an exception; further ones are ignored, the end is under way."""

    def raise_once(number: int, _: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise _Signalled(signal.Signals(number).name)

    for each in SIGNALS:
        if each != signal.SIGHUP or signal.getsignal(each) is not signal.SIG_IGN:  # by nohup
            signal.signal(each, raise_once)
    try:
        yield
    finally:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)


def _say(text: str) -> None:
    """Print a line, if anybody still reads what is printed."""
    try:
        print(text, flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)


def _show_log_end(server: Server) -> None:
    """Show the end of TorchServe's log: a container's files go with it."""
    lines = log.read(server.place.logs).splitlines()[-LOG_LINES:]
    print("".join(f"{line}\n" for line in lines), end="", file=sys.stderr, flush=True)
