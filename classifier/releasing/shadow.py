"""Repeat traffic to a new version, without its answers counting for anybody.

Each picture is asked of the default and of the new version, which one first by turns. Clients
never see these answers, the handler's metric `Answers` leaves them out, and they are not kept as
traffic. They take their time of the same processors, though, and so do the new version's workers.

A kill (SIGKILL) leaves a version that was registered for this; `classifier status` tells so.
"""

from __future__ import annotations

import contextlib
import random
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING

import httpx

from .. import process
from ..errors import ClassifierError, InputError, ServerError
from ..predicting import outcomes, pictures
from ..predicting.asker import CONNECTIONS, fail_at_once
from ..predicting.pictures import Source
from ..serving import config, journal, rollout
from .comparison import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ..predicting.client import Client
    from ..predicting.outcomes import Outcome
    from ..serving.server import Server
    from .comparison import Comparison

    Pair = tuple[Outcome, Outcome]

HEADERS = {"X-Check": "shadow"}
"""By which the handler knows these requests."""
RATE = 10.0
"""Pictures a second that are taken of a folder."""
AT_ONCE = CONNECTIONS
"""Pictures that are under way together, at most; those that come then are left out."""
POLL = 0.1  # seconds between looks at what was kept
PATIENCE = 300.0
"""Seconds to wait for a promotion that is under way, before the new version is retired."""


@dataclass
class Shadow:
    """A comparison on traffic.

    Args:
        server: that runs.
        model: the model's name.
        version: the new one; it is compared with the server's default. Where it isn't registered,
            it is so meanwhile.
        traffic: yields pictures when they are to be asked.
        tell: is told each step.
        tick: is called for each picture that is asked.

    Attributes:
        left_out: pictures that came while AT_ONCE others were under way.
        reasons: why a version failed, by its name: the first reason of each.
    """

    server: Server
    model: str
    version: str
    traffic: Iterator[Source]
    tell: Callable[[str], None] = print
    tick: Callable[[], object] = lambda: None
    left_out: int = field(default=0, init=False)
    reasons: dict[str, str] = field(default_factory=dict, init=False)

    def run(self) -> Comparison | None:
        """Ask both versions until the traffic ends; Ctrl-C ends it early.

        What fails is counted, and ends nothing.

        Returns:
            What was found; None where no picture came.

        Raises:
            ArchiveError: the new version's archive is missing, damaged or another's.
            ServerError: the new version is the default, or can't be served; or another shadow is
                under way.
        """
        default = self.server.management.default(self.model)
        if default == self.version:
            raise ServerError(f"{self.model}:{self.version} is the default: name another version")
        lock = self.server.place.run / "shadow.lock"
        with process.exclusive(lock, "another shadow is under way"), self._served():
            self.tell(f"ask {default} and {self.version}")
            return self._compare(default)

    @contextlib.contextmanager
    def _served(self) -> Iterator[None]:
        """Have the new version served meanwhile, if it isn't anyway."""
        if self.version in self.server.management.versions(self.model):
            yield
            return
        release = self.server.release(self.model)
        sizes = config.sizes(release, self.server.place.model_config)
        self.tell(f"register {self.model}:{self.version}, and start {sizes.workers} workers")
        with journal.alone(self.server.place):
            rollout.register(self.server, self.model, self.version, sizes)
        try:
            yield
        finally:
            self._retire(released=release.versions)

    def _retire(self, released: tuple[str, ...]) -> None:
        """Take the new version out of service, unless it was released meanwhile."""
        try:
            with journal.alone(self.server.place, PATIENCE):
                now = self.server.release(self.model).versions
                if self.version in released or self.version not in now:
                    rollout.retire(self.server.management, self.model, self.version)
                    self.tell(f"retire {self.model}:{self.version}")  # who reads may have gone
        except (ClassifierError, httpx.HTTPError) as error:
            self.tell(f"{self.model}:{self.version} is still served: {error}")

    def _compare(self, default: str) -> Comparison | None:
        versions = (default, self.version)
        tally = Tally(versions)
        under_way: set[Future[Pair | None]] = set()
        begin = time.perf_counter()
        with (
            self.server.client(self.model, fail_at_once, HEADERS) as client,
            ThreadPoolExecutor(AT_ONCE) as pool,
        ):
            with contextlib.suppress(KeyboardInterrupt):
                for number, source in enumerate(self.traffic):
                    self._collect(under_way, tally)
                    if len(under_way) == AT_ONCE:
                        self.left_out += 1
                        continue
                    asked = pool.submit(_ask_both, client, versions, source, number % 2)
                    under_way.add(asked)
            wait(under_way)
            self._collect(under_way, tally)
        elapsed = time.perf_counter() - begin
        return tally.result(elapsed, elapsed) if tally.asked else None

    def _collect(self, under_way: set[Future[Pair | None]], tally: Tally) -> None:
        """Add up what has been answered; it is under way no more."""
        for future in [future for future in under_way if future.done()]:
            under_way.discard(future)
            if (pair := future.result()) is None:
                continue
            tally.add(*pair)
            self.tick()
            for name, outcome in zip(tally.names, pair, strict=True):
                if outcome.prediction is None:
                    self.reasons.setdefault(name, outcome.error)


def _ask_both(client: Client, versions: tuple[str, str], source: Source, first: int) -> Pair | None:
    """Ask both versions, one after the other; None where the picture is no longer there."""
    try:
        image = source.read()
    except InputError:
        return None
    found = {
        at: outcomes.ask(partial(client.predict, version=versions[at]), source, image)
        for at in (first, 1 - first)
    }
    return found[0], found[1]


def traffic(
    server: Server, model: str, version: str, seconds: float, data: Path | None, rate: float = RATE
) -> Iterator[Source]:
    """Return what yields pictures, for so many seconds from the first on.

    Args:
        server: that runs.
        model: the model's name.
        version: that is compared with the default.
        seconds: how long.
        data: a folder, for `replay`; if None, real requests, as they are kept.
        rate: of a folder, in pictures a second.

    Raises:
        ArchiveError: the pictures are labelled, and an archive is missing or damaged.
        InputError: the folder holds no pictures, or they are labelled, but not as the model labels.
        ServerError: the server keeps no requests, or does not serve the model.
    """
    if data is not None:
        sources = pictures.dataset(data)
        versions = [f"{model}:{v}" for v in (server.management.default(model), version)]
        pictures.check_classes(sources, server.place.model_store, versions)
        random.Random(0).shuffle(sources)  # noqa: S311 (else some seconds hold one class alone)
        return replay(sources, rate, seconds)
    if not any(release.model == model and release.keep for release in server.served):
        raise ServerError(
            f"the server keeps no requests of {model}: write `keep = 0.05` under [{model}] in "
            f"{server.place.releases}, `make stop` and `make serve`; or give pictures, --data DIR"
        )
    return follow(server.place.traffic / model, seconds)


def replay(sources: list[Source], rate: float, seconds: float) -> Iterator[Source]:
    """Yield pictures over and over, evenly spaced.

    Args:
        sources: the pictures.
        rate: in 1/s, whatever becomes of those that were yielded.
        seconds: how long.
    """
    begin = time.monotonic()
    for number, source in enumerate(cycle(sources)):
        after = number / rate
        if after >= seconds:
            return
        time.sleep(max(0.0, begin + after - time.monotonic()))
        yield source


def follow(folder: Path, seconds: float) -> Iterator[Source]:
    """Yield pictures as they are put into a folder, for so many seconds; not those of before."""
    end, known = time.monotonic() + seconds, _names(folder)
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(POLL, left))
        names = _names(folder)
        for name in sorted(names - known):
            yield Source(name)
        known = names


def _names(folder: Path) -> set[str]:
    return {str(path) for path in folder.glob("*") if path.suffix in pictures.SUFFIXES}
