"""Measure all servers, side by side and in turns: `make bench`."""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import requests
from tqdm import tqdm

import model

from . import images, load, open_loop, report
from .alone import rate
from .servers import BenchError, Ours, ask, in_turn, servers, settings, start, untuned

if TYPE_CHECKING:
    from collections.abc import Callable

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
        starts: how often all servers are started.
        rounds: how often each is measured then, in turn.
        warm_up: seconds of load before it is.
        connections: how many clients ask at once.
        seconds: for which each number of them asks.
        photos: whether they ask with photos, too.
        held: rates at which servers with our engine are asked as well, whether or not they
            answer, in parts of what the engine does alone.
    """

    starts: int
    rounds: int
    warm_up: int
    connections: tuple[int, ...]
    seconds: int
    photos: bool
    held: tuple[float, ...]


FULL = Plan(2, 3, 8, connections=(1, 8, 32, 64), seconds=3, photos=True, held=(0.25, 0.5))
QUICK = Plan(1, 1, 2, connections=(1, 64), seconds=2, photos=False, held=())


@dataclass(frozen=True)
class Requests:
    """What all servers are asked.

    Attributes:
        small: CIFAR-10's images, as files.
        labels: what it must answer to these, by kind of server.
        bodies, photos: folders of requests with these, and with photos, by encoding; none of
            photos where they are not asked.
        rates: at which servers with our engine are asked as well, in 1/s.
    """

    small: list[bytes]
    labels: dict[str, list[str]]
    bodies: dict[str, Path]
    photos: dict[str, Path]
    rates: list[float]


@dataclass(frozen=True)
class Entrant:
    """A server that runs; it is suspended while others are measured.

    Attributes:
        server: what it is.
        running: its processes.
        asked: what it is asked.
    """

    server: Server
    running: Running
    asked: Requests

    @property
    def name(self) -> str:
        """As failures name it."""
        return _name(self.server)

    def begin(self, warm_up: int) -> None:
        """Check its labels, and warm it up for so many seconds."""
        labels = self.asked.labels[self.server.kind]
        with self.running.awake():
            _check(self.server, self.running, self.asked.small, labels)
            ask(self.server, self.running, self.asked.bodies, 32, warm_up)

    def small(self, connections: int, seconds: int) -> list[Row]:
        """Measure with so many connections."""
        with self.running.awake():
            found = ask(self.server, self.running, self.asked.bodies, connections, seconds)
            return [self._row("small", asdict(found))]

    def photos(self, seconds: int) -> list[Row]:
        """Measure with photos."""
        with self.running.awake():
            found = ask(self.server, self.running, self.asked.photos, PHOTO_CONNECTIONS, seconds)
            return [self._row("photos", asdict(found))]

    def weigh(self) -> list[Row]:
        """Tell its memory and how long it took to start."""
        found = {"memory": self.running.memory(), "start": self.running.seconds}
        return [self._row("none", found)]

    def held(self, rate: float, seconds: int) -> list[Row]:
        """Measure at a rate that is held, where it has our engine."""
        if self.server.kind != "engine":
            return []
        encoding = self.server.encoding
        small = [path.read_bytes() for path in sorted(self.asked.bodies[encoding].iterdir())]
        kind = images.CONTENT_TYPES[encoding]
        with self.running.awake():
            found = open_loop.hold(self.running.url, small, kind, rate, seconds)
            return [self._row("held", asdict(found))]

    def _row(self, what: str, found: dict[str, Any]) -> Row:
        return {"server": self.server.name, "kind": self.server.kind, "images": what, **found}


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
        for why in dict.fromkeys(reasons):
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
    asked = _requests(plan, {server.kind for server in chosen})
    found: list[Row] = []
    failed: Failures = defaultdict(list)
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / "results.jsonl").open("w") as kept:
        for begun in range(plan.starts):
            with ExitStack() as stack:
                entrants = _start(in_turn(chosen, begun), asked, plan, stack, failed)
                for number in range(plan.rounds):
                    rows = _round(in_turn(entrants, number), asked, plan, failed)
                    rows.append({"server": "in process", "kind": "engine", **_alone(asked.small)})
                    rows = [{"round": begun * plan.rounds + number, **row} for row in rows]
                    kept.write("".join(json.dumps(row) + "\n" for row in rows))
                    kept.flush()
                    found += rows
    return found, failed


def _start(
    servers: list[Server], asked: Requests, plan: Plan, stack: ExitStack, failed: Failures
) -> list[Entrant]:
    """Start servers, for as long as the stack holds them; return those that are warmed up."""
    entrants = []
    for server in tqdm(servers, desc="starts", leave=False):
        try:
            entrant = Entrant(server, start(server, asked.small[0], stack), asked)
            entrant.begin(plan.warm_up)
            entrants.append(entrant)
        except (BenchError, load.LoadError) as error:
            failed[_name(server)] += [str(error)] * plan.rounds
    return entrants


def _name(server: Server) -> str:
    return f"{server.name} ({server.kind})"


def _round(entrants: list[Entrant], asked: Requests, plan: Plan, failed: Failures) -> list[Row]:
    """Measure all in turns, load by load; return the rows of those that answered each."""
    loads: list[Callable[..., list[Row]]]
    seconds = plan.seconds
    loads = [partial(Entrant.small, connections=c, seconds=seconds) for c in plan.connections]
    loads += [partial(Entrant.photos, seconds=seconds)] if asked.photos else []
    loads += [Entrant.weigh]
    loads += [partial(Entrant.held, rate=rate, seconds=seconds) for rate in asked.rates]
    rows: dict[str, list[Row]] = {entrant.name: [] for entrant in entrants}
    for measured in tqdm(loads, desc="loads of a round", leave=False):
        for entrant in entrants:
            if entrant.name not in rows:
                continue
            try:
                rows[entrant.name] += measured(entrant)
            except (BenchError, load.LoadError) as error:
                failed[entrant.name].append(str(error))
                del rows[entrant.name]
    return [row for found in rows.values() for row in found]


def _requests(plan: Plan, kinds: set[str]) -> Requests:
    small = images.small()
    alone = _alone(small)["rate"] if plan.held else 0.0
    return Requests(
        small,
        labels={kind: _labels(kind, small) for kind in kinds},
        bodies=images.write(small, OUT / "small"),
        photos=images.write(images.photos(SAMPLE), OUT / "photos") if plan.photos else {},
        rates=[float(round(alone * part, -1)) for part in plan.held],
    )


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
