"""The load: wrk, the same for every server, cycling through the same images."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import requests

SCRIPT = Path(__file__).with_name("requests.lua")

LEFT_OVER = 4
"""Requests whose answers are waited for, in turn, before a measurement."""


class LoadError(RuntimeError):
    """A measurement can't be trusted; the message says why."""


@dataclass(frozen=True)
class Result:
    """What one run of wrk found.

    Attributes:
        connections: how many clients asked, each again as soon as it was answered.
        requests: answers of 200.
        rate: of these, in 1/s.
        p50, p99: milliseconds from request to answer, by percentile.
    """

    connections: int
    requests: int
    rate: float
    p50: float
    p99: float


def wrk() -> str:
    """Return the path of wrk.

    Raises:
        LoadError: it is not installed.
    """
    found = shutil.which("wrk")
    if found is None:
        raise LoadError("wrk is not installed: apt-get install wrk")
    return found


def run(url: str, bodies: Path, content_type: str, connections: int, seconds: int) -> Result:
    """Ask a server for so many seconds; one thread of wrk, as the server shares its cores.

    Args:
        url: of the endpoint.
        bodies: a folder with a file for each request's body.
        content_type: of all of them.
        connections: how many at once.
        seconds: how long; wrk takes no parts of one.

    Raises:
        LoadError: wrk is missing, an answer was not 200, or there was none.
    """
    files = sorted(bodies.iterdir())
    _settle(url, files[0].read_bytes(), content_type)
    command = [wrk(), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout=30s"]
    command += ["-s", str(SCRIPT), url, "--", content_type, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LoadError(f"wrk failed on {url}: {done.stderr.strip()}")
    found = json.loads(done.stdout.splitlines()[-1])
    errors = {key: count for key, count in found.pop("errors").items() if count}
    if errors:
        raise LoadError(f"{url} with {connections} connections: {errors}")
    if not found["requests"]:
        raise LoadError(f"{url} answers nothing within {seconds} s")
    return Result(connections=connections, **found)


def _settle(url: str, body: bytes, content_type: str) -> None:
    """Wait until a server has done what the load before has left: else this one pays for it."""
    try:
        for _ in range(LEFT_OVER):
            requests.post(url, data=body, headers={"Content-Type": content_type}, timeout=60)
    except requests.RequestException as error:
        raise LoadError(f"{url} does not answer: {error}") from error
