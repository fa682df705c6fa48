"""Find the sizes with which this machine serves best, with one's own images: `make tune`.

First workers and threads are varied, then the batch, then the delay; each time the best is kept.
What is varied runs side by side and is measured in turns, with one connection and with many: from
minute to minute a machine's speed changes by more than is to be found.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import tomlkit
from joblib import cpu_count
from matplotlib.figure import Figure
from tqdm import tqdm

from classifier import atomic
from classifier.archiving import archive as archives
from classifier.archiving import store
from classifier.errors import ClassifierError
from classifier.place import Place
from classifier.predicting import pictures
from classifier.serving import config, releases
from model.image import ImageError, decode

from . import images, load, page
from .servers import PEERS, SETTINGS, BenchError, Ours, ask, in_turn, peer, start

if TYPE_CHECKING:
    from .servers import Server

CONNECTIONS = (32, 64)
WARM_UP, SECONDS, SECONDS_ALONE = 5, 2, 1
TURNS = 5
"""How often each choice is measured; its medians count."""
TIE = 0.05
"""Rates that differ by less say nothing: so do those of one choice from one race to the next."""
MOST_WORKERS = 16
"""More take more memory than most machines have."""
BATCHES = (8, 16, 32, 64)
DELAYS = (0, 1, 2, 5)
BEGIN = {"workers": 1, "threads": 1, "batch": 16, "delay": 0}
"""What is kept of each until it is varied itself; the delay is never less than is of use."""
OUT = Path("run/tune")

Sizes = dict[str, int]


@dataclass(frozen=True)
class Trial:
    """What sizes gave.

    Attributes:
        sizes: what was tried.
        rate: answers a second, the mean over CONNECTIONS; 0 where not all requests were answered.
        p99: ms, with the most connections.
        alone: p50 in ms, with one connection.
    """

    sizes: Sizes
    rate: float
    p99: float
    alone: float


@dataclass(frozen=True)
class Goal:
    """What is best: the highest rate, of those with a p99 below a limit; or the least latency.

    Of rates that are as good as the highest, the one with the least latency is best: that of many
    times that of one alone, so that neither is had at the other's price.
    """

    p99: float | None = None
    latency: bool = False

    def best(self, trials: list[Trial]) -> Trial:
        """Return the best trial; where none keeps the limit, that with the lowest p99."""
        if self.latency:
            return min(trials, key=lambda trial: trial.alone)
        kept = [t for t in trials if self.p99 is None or t.p99 <= self.p99]
        if not kept:
            return min(trials, key=lambda trial: trial.p99)
        enough = (1 - TIE) * max(trial.rate for trial in kept)
        return min((t for t in kept if t.rate >= enough), key=lambda t: t.p99 * t.alone)


def splits(cores: int) -> list[Sizes]:
    """Return ways to share cores between workers and threads, that of the defaults among them."""
    if gpus := config.gpus():
        counts = {gpus * each for each in (1, config.WORKERS_PER_GPU, 4)}
    else:
        counts = {min(MOST_WORKERS, cores // divisor) for divisor in (1, 2, 4)} - {0} | {1}
        counts.add(min(config.MOST_WORKERS, cores))
    return [
        {"workers": workers, "threads": max(1, cores // workers)}
        for workers in sorted(counts, reverse=True)
    ]


def stages(name: str, cores: int) -> list[list[Sizes]]:
    """Return what is varied of a server, one thing after the other, and only what it reads."""
    varied = [splits(cores)]
    if "batch" in reads(name):
        varied.append([{"batch": batch} for batch in BATCHES])
    if "delay" in reads(name):
        varied.append([{"delay": delay} for delay in DELAYS if delay >= _least_delay(name)])
    return varied


def reads(name: str) -> tuple[str, ...]:
    """Return which sizes a server heeds."""
    return tuple(BEGIN) if name == Ours.name else PEERS[name].reads


def begin(name: str) -> Sizes:
    """Return the sizes of a server before any is varied."""
    least = {"delay": _least_delay(name)}
    return {key: max(BEGIN[key], least.get(key, 0)) for key in reads(name)}


def _least_delay(name: str) -> int:
    """Return the least delay that is of use, in ms."""
    return 0 if name == Ours.name else PEERS[name].least_delay


class Entrant:
    """One choice of sizes in a race.

    Args:
        sizes: of the server.
        server: that has them.
        image: with which it is started.
        folders: of the bodies that it is asked, by encoding.
    """

    def __init__(
        self, sizes: Sizes, server: Server, image: bytes, folders: dict[str, Path]
    ) -> None:
        self.sizes, self.server, self.image, self.folders = sizes, server, image, folders
        self.turns: list[Trial] = []

    def start(self, running: ExitStack) -> None:
        """Start the server, for as long as others run, and warm it up."""
        self.running = start(self.server, self.image, running)
        with self.running.awake():
            self._ask(max(CONNECTIONS), WARM_UP)

    def measure(self) -> None:
        """Take a turn."""
        with self.running.awake():
            many = [self._ask(count, SECONDS) for count in CONNECTIONS]
            alone = self._ask(1, SECONDS_ALONE)
        rate = mean(found.rate for found in many)
        self.turns.append(Trial(self.sizes, rate, many[-1].p99, alone.p50))

    def trial(self) -> Trial:
        """Return the medians of all turns, if it took each."""
        if len(self.turns) < TURNS:
            return Trial(self.sizes, 0, math.inf, math.inf)
        found = [(turn.rate, turn.p99, turn.alone) for turn in self.turns]
        return Trial(self.sizes, *map(median, zip(*found, strict=True)))

    def _ask(self, connections: int, seconds: int) -> load.Result:
        return ask(self.server, self.running, self.folders, connections, seconds)


def race(entrants: list[Entrant], bar: tqdm[Any]) -> list[Trial]:
    """Run all side by side, and measure them in turns; return what each gave, in order."""
    going = list(entrants)
    with ExitStack() as running:
        for turn in range(1 + TURNS):
            for entrant in in_turn(going, turn):
                try:
                    entrant.measure() if turn else entrant.start(running)
                except (BenchError, load.LoadError) as error:  # as where it can't have these sizes
                    tqdm.write(f"{entrant.server.name} with {entrant.sizes}: {error}")
                    going.remove(entrant)
                bar.update()
    return [entrant.trial() for entrant in entrants]


def tune(name: str, bodies: list[bytes], goal: Goal, archive: Path | None = None) -> list[Trial]:
    """Try sizes of one server; return all trials, the best first.

    Args:
        name: of the server.
        bodies: image files that it is asked.
        goal: what is best.
        archive: what our server serves; the released net if None.

    Raises:
        BenchError: with no sizes it answered all requests.
    """
    varied = stages(name, cpu_count())
    folders = images.write(bodies, OUT / "images")
    sizes = begin(name)
    trials: list[Trial] = []
    with tqdm(total=(1 + TURNS) * sum(map(len, varied)), desc=name, unit=" steps") as bar:
        for stage in varied:
            tried = [sizes | change for change in stage]
            entrants = [
                Entrant(each, _server(name, each, archive), bodies[0], folders) for each in tried
            ]
            found = race(entrants, bar)
            best = goal.best(found)
            sizes = best.sizes
            # What was best before has run again: of the same sizes the last trial counts.
            before = [t for t in trials if all(t.sizes != other.sizes for other in found)]
            trials = [best, *(t for t in found if t is not best), *before]
    if not best.rate:
        raise BenchError(f"{name} answers all requests with none of the sizes that were tried")
    return trials


def _server(name: str, sizes: Sizes, archive: Path | None) -> Server:
    """Return a server with our engine and these sizes."""
    if name == Ours.name:
        return Ours(sizes, archive=archive)
    return peer(name, "engine", sizes)


def keep(path: Path, sizes: Sizes) -> None:
    """Write sizes to releases.toml, for each model; what else it says stays, comments too."""
    document = tomlkit.parse(path.read_text())
    for table in document.values():
        table.update(sizes)
    atomic.write(path, tomlkit.dumps(document))


def table(trials: list[Trial], best: Trial) -> str:
    """Return the trials as a table, fastest first; the best is marked."""
    head = ["workers", "threads", "batch", "delay, ms", "answers a second", "p99, ms"]
    rows = [
        [
            *(str(t.sizes.get(key, "")) for key in BEGIN),
            f"{t.rate:,.0f}",
            f"{t.p99:.1f}",
            f"{t.alone:.2f}",
            "best" if t is best else "",
        ]
        for t in sorted(trials, key=lambda trial: -trial.rate)
    ]
    return page.table([*head, "alone, p50, ms", ""], rows)


def picture(trials: list[Trial], best: Trial) -> Figure:
    """Draw the throughput of each trial against its 99th percentile of latency."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for trial in trials:
        axes.plot(trial.rate, trial.p99, "o", color="tab:red" if trial is best else "tab:blue")
        axes.annotate(" · ".join(map(str, trial.sizes.values())), (trial.rate, trial.p99))
    axes.set_xlabel(f"answers a second with {CONNECTIONS} connections, the mean")
    axes.set_ylabel("99th percentile of latency, ms")
    axes.set_title(" · ".join(best.sizes))
    return figure


def own_images(folder: Path) -> list[bytes]:
    """Read the images of a folder, some 200 at most, in whatever folders they lie.

    Raises:
        InputError: there are none, or one can't be read.
        BenchError: one of them would be refused.
    """
    sources = pictures.find([str(folder)])
    bodies = []
    for source in sources[:: -(-len(sources) // images.SMALL)]:
        bodies.append(source.read())
        try:
            decode(bodies[-1])
        except ImageError as error:
            raise BenchError(f"{source.name}: {error}") from None
    return bodies


def own_archive() -> Path | None:
    """Return the archive of the first default of releases.toml; None for the released net.

    Raises:
        ArchiveError: the store does not hold it.
        ReleasesError: releases.toml is no good.
    """
    first = releases.read(Place.releases)[0]
    if (first.model, first.default) == (archives.MODEL, archives.VERSION):
        built = archives.released_in(Place.model_store)
        if not built.exists() or archives.is_released(built):
            return None
    return store.find(Place.model_store, f"{first.model}:{first.default}")


def main() -> int:
    """Tune our server, and keep what is best in releases.toml."""
    parser = argparse.ArgumentParser(prog="make tune", description=main.__doc__)
    parser.add_argument("--data", type=Path, default=Path("samples"), help="folder of images")
    parser.add_argument("--p99", type=float, help="ms that 99 % of answers may take at most")
    parser.add_argument("--latency", action="store_true", help="the least for one at a time")
    parser.add_argument("--peers", action="store_true", help="all servers, for `make bench`")
    arguments = parser.parse_args()
    goal = Goal(arguments.p99, arguments.latency)
    try:
        load.wrk()  # a trial without it would count as a server that fails
        if arguments.peers:
            tune_all(goal)
            return 0
        trials = tune(Ours.name, own_images(arguments.data), goal, own_archive())
    except (BenchError, ClassifierError, load.LoadError) as error:
        print(f"make tune: {error}", file=sys.stderr)
        return 1
    best = trials[0]
    print(table(trials, best))
    OUT.mkdir(parents=True, exist_ok=True)
    picture(trials, best).savefig(OUT / "frontier.png", dpi=100)
    keep(Place.releases, best.sizes)
    print(f"{Place.releases} has them now (`make stop serve`); {OUT}/frontier.png shows them all")
    return 0


def tune_all(goal: Goal) -> None:
    """Tune every server with our engine on CIFAR-10's images; keep the best in settings.json."""
    sizes = {}
    for name in (Ours.name, *PEERS):
        trials = tune(name, images.small(), goal)
        print(f"{name}\n{table(trials, trials[0])}\n", flush=True)
        sizes[name] = trials[0].sizes
    SETTINGS.write_text(json.dumps({"cores": cpu_count(), "sizes": sizes}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
