"""Measure all servers, in turn, round by round: `make bench`."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import requests
from tqdm import tqdm

import model

from . import images, load, open_loop, report
from .alone import rate
from .servers import BenchError, Ours, servers, settings, untuned

if TYPE_CHECKING:
    from .report import Failures, Row
    from .servers import Running, Server

KINDS = ("tutorial", "engine")
PHOTO_CONNECTIONS = 8
OUT = Path("run/bench")
SAMPLE = Path("samples/cat.jpg")


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: how often each server is measured, in turn.
        warm_up: seconds of load before it is.
        connections: how many clients ask at once, one number after the other.
        seconds: for which each number of them asks.
        held: rates at which servers with our engine are asked as well, whether or not they
            answer, in parts of what the engine does alone.
    """

    rounds: int
    warm_up: int
    connections: tuple[int, ...]
    seconds: int
    held: tuple[float, ...]


FULL = Plan(rounds=5, warm_up=8, connections=(1, 8, 32, 64), seconds=3, held=(0.25, 0.5))
QUICK = Plan(rounds=1, warm_up=2, connections=(1, 64), seconds=2, held=())


@dataclass(frozen=True)
class Requests:
    """What all servers are asked.

    Attributes:
        small: CIFAR-10's images, as files.
        bodies, photos: folders of requests with these, and with photos, by encoding.
        rates: at which servers with our engine are asked as well, in 1/s.
    """

    small: list[bytes]
    bodies: dict[str, Path]
    photos: dict[str, Path]
    rates: list[float]


def main() -> int:
    """Measure, and write docs/benchmarks.md."""
    parser = argparse.ArgumentParser(prog="make bench", description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--only", help="names of servers, with commas between them")
    parser.add_argument("--kind", choices=KINDS, help="of servers; else both")
    arguments = parser.parse_args()
    try:
        chosen = choose(arguments.only, arguments.kind)
        load.wrk()
    except (BenchError, load.LoadError) as error:
        print(f"make bench: {error}", file=sys.stderr)
        return 1
    found, failed = measure(chosen, QUICK if arguments.quick else FULL)
    for name, reasons in failed.items():
        for why in reasons:
            print(f"make bench: {name} failed in a round: {why}", file=sys.stderr)
    if not any("connections" in row for row in found):
        return 1
    print(report.summary(found, failed))
    if remark := untuned():
        print(remark, file=sys.stderr)
    if arguments.quick or arguments.only or arguments.kind:  # a part of what the page tells
        return 1 if failed else 0
    if not any(row["server"] == Ours.name for row in found):
        print(f"make bench: {Ours.name} failed in all rounds: nothing is written", file=sys.stderr)
        return 1
    report.write(found, failed, Path("docs"))
    return 1 if failed else 0


def choose(only: str | None, kind: str | None) -> list[Server]:
    """Return the servers of a kind, or of both, and of them only some, by their names.

    Raises:
        BenchError: a name is of none of them.
    """
    every = servers(settings())
    known = {server.name: None for server in every if kind in (None, server.kind)}
    names = [name.strip() for name in only.split(",")] if only else list(known)
    for name in names:
        if name not in known:
            raise BenchError(f"no server is named {name!r} here, but these: {', '.join(known)}")
    return [server for server in every if server.name in names and kind in (None, server.kind)]


def measure(chosen: list[Server], plan: Plan) -> tuple[list[Row], Failures]:
    """Measure each server once a round.

    Returns:
        What was found, also kept in OUT as it comes; and why servers failed, by name.
    """
    asked = _requests(plan)
    labels = {kind: _labels(kind, asked.small) for kind in {server.kind for server in chosen}}
    found: list[Row] = []
    failed: Failures = {}
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / "results.jsonl").open("w") as kept:
        for number in range(plan.rounds):
            turns = chosen[number % len(chosen) :] + chosen[: number % len(chosen)]
            for server in tqdm(turns, desc=f"round {number + 1} of {plan.rounds}"):
                try:
                    new = _measure(server, asked, labels[server.kind], plan)
                except (BenchError, load.LoadError) as error:
                    failed.setdefault(f"{server.name} ({server.kind})", []).append(str(error))
                    continue
                found += [{"round": number, **row} for row in new]
                kept.write("".join(json.dumps(row) + "\n" for row in found[-len(new) :]))
                kept.flush()
            row = {"round": number, "server": "in process", "kind": "engine", **_alone(asked.small)}
            found.append(row)
            kept.write(json.dumps(row) + "\n")
    return found, failed


def _requests(plan: Plan) -> Requests:
    small, photos = images.small(), images.photos(SAMPLE)
    alone = _alone(small)["rate"] if plan.held else 0.0
    return Requests(
        small,
        bodies=images.write(small, OUT / "small"),
        photos=images.write(photos, OUT / "photos"),
        rates=[float(round(alone * part, -1)) for part in plan.held],
    )


def _measure(server: Server, asked: Requests, labels: list[str], plan: Plan) -> list[Row]:
    """Measure one server: at each number of connections, with photos, and at the rates."""
    kind = images.CONTENT_TYPES[server.encoding]
    bodies, photos = asked.bodies[server.encoding], asked.photos[server.encoding]
    with server.running(asked.small[0]) as running:
        _check(server, running, asked.small, labels)
        load.run(running.url, bodies, kind, 32, plan.warm_up)
        rows = []
        for connections in plan.connections:
            found = load.run(running.url, bodies, kind, connections, plan.seconds)
            rows.append({"images": "small", **asdict(found)})
        photo = load.run(running.url, photos, kind, PHOTO_CONNECTIONS, plan.seconds)
        rows.append({"images": "photos", **asdict(photo)})
        memory = running.memory()
        if server.kind == "engine":
            small = [path.read_bytes() for path in sorted(bodies.iterdir())]
            for rate in asked.rates:
                held = open_loop.hold(running.url, small, kind, rate, plan.seconds)
                rows.append({"images": "held", **asdict(held)})
        about = {
            "server": server.name,
            "kind": server.kind,
            "memory": memory,
            "start": running.seconds,
        }
    return [{**about, **row} for row in rows]


def _labels(kind: str, small: list[bytes]) -> list[str]:
    """Return what servers of a kind must answer: what the same engine does in this process."""
    reference = model.load("model", "torch" if kind == "tutorial" else "auto")
    rows = reference.probabilities(np.stack([model.decode(image) for image in small]))
    return [next(iter(reference.top(row))) for row in rows]


def _check(server: Server, running: Running, small: list[bytes], labels: list[str]) -> None:
    """Fail unless a server gives all images their labels."""
    headers = {"Content-Type": images.CONTENT_TYPES[server.encoding]}
    for image, expected in zip(small, labels, strict=True):
        body = images.body(image, server.encoding)
        try:
            got = _likeliest(requests.post(running.url, data=body, headers=headers, timeout=30))
        except requests.RequestException as error:
            raise BenchError(f"{running.url} does not answer: {error}") from error
        if got != expected:
            raise BenchError(f"{server.name} ({server.kind}) answers {got}, not {expected}")


def _likeliest(answer: requests.Response) -> str:
    """Return the likeliest label of an answer.

    Raises:
        BenchError: it is no answer, but what a server says that can't give one.
    """
    with suppress(ValueError, TypeError, LookupError):
        told = answer.json()
        shown = told[0] if isinstance(told, list) else told  # BentoML's batches are lists
        if answer.ok:
            return str(max(shown, key=lambda label: float(shown[label])))
    raise BenchError(f"{answer.url} answers {answer.status_code} {answer.text[:200]}")


def _alone(small: list[bytes], seconds: float = 5.0, batch: int = 32) -> dict[str, Any]:
    """Measure the engine in this process, on all cores: what HTTP takes away from."""
    classifier = model.load("model")
    pixels = np.stack([model.decode(image) for image in small[:batch]])
    for _ in range(20):
        classifier.probabilities(pixels)
    return {"images": "small", "rate": rate(classifier.probabilities, pixels, seconds)}


if __name__ == "__main__":
    sys.exit(main())
