"""Make another version the default: checked before, watched after, taken back where it fails.

What a kill leaves at each step:

    registered, warmed up, compared     the old default serves; the new version is merely there
    journal written                     as before
    default switched, probed, watched   the monitor finds the journal of a process that is gone, and
                                        switches back; a restart serves releases.toml, the old one
    releases.toml replaced              the new default serves, now and after a restart
    history written, journal removed    done
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from ..archiving import store
from ..errors import ArchiveError, ClassifierError, InputError, ServerError
from ..predicting import pictures
from ..predicting.asker import fail_at_once
from ..serving import answered, config, history, journal, releases, rollout
from ..serving.answered import Answered
from ..serving.warmup import warm_up
from . import comparison

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..predicting.client import Client
    from ..predicting.pictures import Source
    from ..serving.releases import Release
    from ..serving.server import Server
    from .comparison import Comparison

CHECKS = Path("samples")
"""Pictures that each version is asked where no data is given."""
PROBES = 200
ENOUGH = 5
"""Probes of a rollback that fail before it asks no more: each may take as long as TIMEOUT."""
TOLERANCE = 0.005
"""By how much a new version may be right less often."""
WARM_UP = 3.0  # seconds
WATCH = 5.0  # seconds
HEADERS = {"X-Check": "promote"}
"""By which the handler knows these requests: nobody uses their answers, so they do not count."""
RISE = 0.01
"""By how much the part of requests that the server fails may rise with the switch."""


@dataclass
class Promotion:
    """A change of the default.

    Args:
        server: a running one.
        model: whose default changes.
        version: that becomes it.
        sources: pictures that both versions are asked; with labels, accuracy decides.
        tolerance: by how much the new one may be right less often, in [0, 1].
        probes: requests without a version after the switch; each must be answered by the new one.
        watch: seconds before the switch, and after it, in which the server's answers to all its
            clients are watched: failures may not rise. 0: they are not watched.
        tell: is told each step.
        other_labels: whether it may have other labels than the default: clients may count on those.
        action: `promote`; or `rollback`: nothing is compared, one worker is enough, and probes that
            fail are only told.
    """

    server: Server
    model: str
    version: str
    sources: list[Source]
    tolerance: float = TOLERANCE
    probes: int = PROBES
    watch: float = WATCH
    tell: Callable[[str], None] = print
    other_labels: bool = False
    action: str = "promote"

    def run(self) -> history.Entry:
        """Promote; return what the history says of it.

        Raises:
            ArchiveError: the archive is missing, damaged or another's.
            InputError: the pictures are labelled, but not as the model labels.
            ServerError: the version can't be served, has other labels, is worse, or fails after the
                switch. The old default serves then, as before.
        """
        with journal.alone(self.server.place):
            journal.finish(self.server)
            release = self.server.release(self.model)
            if release.default == self.version:
                raise ServerError(f"{self.model}:{self.version} is the default already")
            versions = [f"{self.model}:{v}" for v in (release.default, self.version)]
            pictures.check_classes(self.sources, self.server.place.model_store, versions)
            if self.action == "promote" and not self.other_labels:
                self._check_labels(release.default)
            is_new = self.version not in self.server.management.versions(self.model)
            try:
                figures = {"sha256": self._bring_up(release, is_new), "probes": self.probes}
                if self.action == "promote":  # what one goes back to need not be as good
                    figures |= _figures(self._compare(release))
                entry = history.Entry(
                    self.action, self.model, release.default, self.version, figures=figures
                )
                self._switch(release, entry, is_new)
            except BaseException:
                if is_new and self.server.release(self.model).default != self.version:
                    self._take_down()
                raise
            return entry

    def _check_labels(self, default: str) -> None:
        """Refuse a version of other labels, as far as both archives tell theirs.

        Raises:
            ServerError: it has.
        """
        with contextlib.suppress(ArchiveError):  # one that is missing is told by what needs it
            old, new = (
                store.labels(self.server.place.model_store, [f"{self.model}:{version}"])
                for version in (default, self.version)
            )
            if set(old) != set(new):
                raise ServerError(
                    f"{self.version} has the labels {_some(new)}, {default} has {_some(old)}: not "
                    "promoted. --other-labels promotes it nevertheless"
                )

    def _bring_up(self, release: Release, is_new: bool) -> str:
        """Let the version have READY workers; return its archive's sha256."""
        management = self.server.management
        sizes = config.sizes(release, self.server.place.model_config)
        if is_new:
            self.tell(f"register {self.model}:{self.version}, and start {sizes.workers} workers")
            sha256 = rollout.register(self.server, self.model, self.version, sizes)
        else:
            sha256 = self._sha256_of_served()
            if management.versions(self.model)[self.version] < sizes.workers:
                self.tell(f"start {sizes.workers} workers")
                # Whoever goes back is in a hurry: one worker answers, too.
                enough = 1 if self.action == "rollback" else sizes.workers
                rollout.scale(self.server, self.model, self.version, sizes.workers, enough)
        self.tell("warm up")
        url = f"{self.server.inference}/predictions/{self.model}/{self.version}"
        warm_up(url, WARM_UP, self.server.authorization())
        return sha256

    def _sha256_of_served(self) -> str:
        """Return the sha256 of the archive of a version that is served already.

        Raises:
            ServerError: the store holds another by now: a restart would serve what nobody compared.
        """
        sha256 = self.server.archive_sha256(self.model, self.version)
        name = store.file_name(self.model, self.version)
        if self.server.state.changed({name: sha256}):
            raise ServerError(
                f"{name} has changed since it was loaded: build it under another version, and "
                "promote that"
            )
        return sha256

    def _compare(self, release: Release) -> Comparison:
        """Ask both versions the same pictures.

        Raises:
            ServerError: the new one is worse, or fails where the old one does not.
        """
        self.tell(f"compare {release.default} and {self.version}: {len(self.sources)} pictures")
        with self.server.client(self.model, headers=HEADERS) as client:
            found = comparison.compare(
                (release.default, self.version),
                (
                    lambda image: client.predict(image, release.default),
                    lambda image: client.predict(image, self.version),
                ),
                self.sources,
                client.abandon,
            )
        if found.loss is None:
            self.tell(
                "  which is right more often was not compared: --data wants labelled pictures"
            )
        if found.new.failed > found.old.failed:
            raise ServerError(
                f"{self.version} fails on {found.new.failed} pictures, "
                f"{release.default} on {found.old.failed}: not promoted"
            )
        if found.loss is not None and found.loss > self.tolerance:
            raise ServerError(
                f"{self.version} is right about {found.new.accuracy:.2%}, {release.default} about "
                f"{found.old.accuracy:.2%}; {self.tolerance:.2%} less is tolerated: not promoted"
            )
        return found

    def _switch(self, release: Release, entry: history.Entry, is_new: bool) -> None:
        """Switch the default, probe it, and write releases.toml and the history; or switch back."""
        management, place = self.server.management, self.server.place
        before = self._watch()
        note = journal.Journal(place.journal)
        note.write(entry, is_new)
        try:
            self.tell(f"switch the default from {release.default} to {self.version}")
            management.set_default(self.model, self.version)
            self._probe(release.default)
            self._check(before, self._watch())
            releases.make_default(place.releases, self.model, self.version)
        except BaseException:
            if self.server.release(self.model).default != self.version:  # else it is kept
                # Where TorchServe does not answer, the journal stays: the monitor switches back.
                with contextlib.suppress(httpx.TransportError):
                    management.set_default(self.model, release.default)
                    note.remove()
                    self.tell(f"switched back to {release.default}")
            raise
        # From here on it is kept: what fails now, `recover` brings to its end.
        history.append(place.history, entry)
        releases.make_default(place.served, self.model, self.version)
        note.remove()

    def _probe(self, before: str) -> None:
        """Ask without a version, and count what goes wrong.

        That a picture is refused is the picture's fault where the version before refuses it, too.

        Raises:
            ServerError: an answer is missing, or another version's. Of a rollback it is only told:
                going back to what one fled from would be worse.
        """
        self.tell(f"probe: {self.probes} requests")
        failures: list[str] = []
        images = [source.read() for source in self.sources[: self.probes]]
        with self.server.client(self.model, fail_at_once, HEADERS) as client:
            for number in range(self.probes):
                failure = self._probe_once(client, before, images[number % len(images)])
                if failure is None:
                    continue
                failures.append(failure)
                if self.action == "promote":  # users wait: nobody needs to know how many more
                    raise ServerError(f"{self.version} failed at probe {number + 1}: {failure}")
                if len(failures) == ENOUGH:
                    break
        if failures:
            self.tell(f"  {self.version} failed {len(failures)} of {number + 1}: {failures[0]}")

    def _probe_once(self, client: Client, before: str, image: bytes) -> str | None:
        """Ask once; return what is wrong with the answer, or None."""
        try:
            version = client.predict(image).version
        except InputError as error:
            return None if _refuses(client, before, image) else str(error)
        except ClassifierError as error:
            return str(error)
        return None if version == self.version else f"{version} answered"

    def _watch(self) -> Answered | None:
        """Return what the server answers in a while, to all its clients; None if it can't tell."""
        if not self.watch:
            return Answered(0, 0)
        self.tell(f"watch what the server answers: {self.watch:g} s")
        metrics = config.address(self.server.properties, "metrics")
        begin = answered.read(metrics)
        time.sleep(self.watch)
        end = answered.read(metrics)
        return None if begin is None or end is None else end - begin

    def _check(self, before: Answered | None, after: Answered | None) -> None:
        """Look whether the server fails more than before the switch.

        TorchServe counts failures of all versions together; what changed is the default.

        Raises:
            ServerError: it does.
        """
        if before is None or after is None:
            self.tell("  its metrics do not tell: not watched")
        elif after.share > before.share + RISE:
            raise ServerError(
                f"after the switch {after.share:.1%} of {after.requests:,.0f} requests failed, "
                f"before it {before.share:.1%} of {before.requests:,.0f}"
            )
        elif self.watch:
            self.tell(f"  {after.requests:,.0f} requests, {after.share:.1%} of them failed")

    def _take_down(self) -> None:
        """Take the version out of service that this promotion has brought."""
        with contextlib.suppress(ClassifierError, httpx.TransportError):
            rollout.retire(self.server.management, self.model, self.version)


def _some(labels: list[str], most: int = 5) -> str:
    """Name labels, of many the first."""
    more = f" and {len(labels) - most} more" if len(labels) > most else ""
    return ", ".join(labels[:most]) + more


def checks(data: Path | None) -> list[Source]:
    """Return the pictures to compare with: labelled ones of a folder, or the samples."""
    return pictures.labelled(data) if data is not None else pictures.find([str(CHECKS)])


def _refuses(client: Client, version: str, image: bytes) -> bool:
    """Tell whether a version says that a picture is none."""
    try:
        client.predict(image, version)
    except ClassifierError as error:
        return isinstance(error, InputError)
    return False


def _figures(found: Comparison) -> dict[str, Any]:
    """Return what the history keeps of a comparison."""
    told = found.to_json()
    return {key: told[key] for key in ("pictures", "agreement", "old", "new")}
