"""Promote and roll back: what is refused, what is taken back, and what a kill leaves."""

from __future__ import annotations

import getpass
import hashlib
import json
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import httpx
import pytest
import torch
from safetensors.torch import load_file

from classifier import Client, process
from classifier.archiving import archive
from classifier.errors import ArchiveError, ReleasesError, ServerError
from classifier.place import Place
from classifier.releasing.promotion import Promotion, checks
from classifier.serving import answered, config, history, log, releases, rollout
from classifier.serving.journal import Journal, recover
from classifier.serving.management import Worker
from classifier.serving.releases import Release
from classifier.serving.server import Server

from .images import SAMPLE, crops
from .test_lifecycle import classifier, edit, edit_handler
from .test_monitor import ask, wait_for

if TYPE_CHECKING:
    from .deployment import Deployment

KILLED = """
import os, signal, sys
from pathlib import Path
import classifier.releasing.promotion as p
from classifier import cli

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def then_die(function):
    def both(*arguments, **options):
        function(*arguments, **options)
        die()
    return both

step = sys.argv.pop(1)
if step == "warm up":
    p.warm_up = die
elif step == "compare":
    p.comparison.compare = die
elif step == "journal":
    p.journal.Journal.write = then_die(p.journal.Journal.write)
elif step == "probe":
    p.Promotion._probe = die
elif step == "keep":
    p.releases.make_default = die
elif step == "history":
    p.history.append = die
elif step == "end":
    p.journal.Journal.remove = die
cli.main()
"""
"""The command, killed at a step."""

STEPS = {
    "warm up": "1.0",
    "compare": "1.0",
    "journal": "1.0",
    "probe": "1.0",
    "keep": "1.0",
    "history": "2.0",
    "end": "2.0",
}
"""The step at which the command is killed, and the default that is left."""


@pytest.fixture
def running(deployment: Deployment) -> Deployment:
    """A server of 1.0, with 2.0 in its store, of the same weights."""
    archive.build("cifar10", "2.0", Path(archive.WEIGHTS), deployment.place.model_store)
    text = deployment.place.releases.read_text()
    deployment.place.releases.write_text(f"# a comment\n{text}")
    deployment.start()
    return deployment


def default(deployment: Deployment) -> str:
    """Return which version answers by default."""
    with Client(deployment.inference) as client:
        return client.predict(SAMPLE).version


def entries(deployment: Deployment) -> list[tuple[str, str, str]]:
    return [(e.action, e.before, e.after) for e in history.read(deployment.place.history)]


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    """A folder of pictures of one class."""
    folder = tmp_path / "val"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "whole.jpg").write_bytes(SAMPLE.read_bytes())
    for number, image in enumerate(crops(5)):
        (folder / "cat" / f"{number}.png").write_bytes(image)
    return folder


def test_promote_and_roll_back(running: Deployment, cats: Path) -> None:
    other = classifier(*running.options, "promote", "cifar10:2.0", "--model=pets")
    assert "cifar10:2.0 is no version of pets" in other.stderr
    done = classifier(*running.options, "promote", "cifar10:2.0", f"--data={cats}", "--probes=20")
    assert done.returncode == 0, done.stderr
    assert "cifar10:2.0 is the default;" in done.stdout
    assert default(running) == "2.0"
    (release,) = releases.read(running.place.releases)
    assert (release.default, release.versions) == ("2.0", ("1.0", "2.0"))
    assert running.place.releases.read_text().startswith("# a comment\n")
    running.server.check()

    again = classifier(*running.options, "promote", "2.0")
    assert again.returncode == 1
    assert "2.0 is the default already" in again.stderr

    listed = json.loads(classifier(*running.options, "models", "--json").stdout)
    keys = ("version", "is_default", "ready", "workers")
    assert [tuple(row[key] for key in keys) for row in listed] == [
        ("1.0", False, 1, 1),
        ("2.0", True, 1, 1),
    ]
    assert listed[0]["accuracy"] == listed[1]["accuracy"] > 0.9
    assert listed[1]["released"]
    assert not listed[0]["released"]
    for row in listed:
        data = (running.place.model_store / f"cifar10-{row['version']}.mar").read_bytes()
        assert (row["size"], row["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())

    back = classifier(*running.options, "rollback")
    assert back.returncode == 0, back.stderr
    assert "cifar10:1.0 is the default again" in back.stdout
    assert default(running) == "1.0"
    assert entries(running) == [("promote", "1.0", "2.0"), ("rollback", "2.0", "1.0")]
    shown = classifier(*running.options, "history").stdout
    assert shown.index("promote") < shown.index("rollback")
    nothing = classifier(*running.options, "rollback")
    assert "knows no default of cifar10 before this one" in nothing.stderr
    running.stop()
    running.start()
    assert default(running) == "1.0"


def test_what_promote_and_rollback_tell_machines(running: Deployment, cats: Path) -> None:
    path = running.place.model_store / "cifar10-2.0.mar"
    begin = datetime.now(UTC).replace(microsecond=0)
    command = ["promote", "2.0", f"--data={cats}", "--probes=7", "--watch=0", "--json"]
    done = classifier(*running.options, *command)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    keys = ("action", "model", "before", "after", "who")
    assert [told[key] for key in keys] == ["promote", "cifar10", "1.0", "2.0", getpass.getuser()]
    assert begin <= datetime.fromisoformat(told["when"]) <= datetime.now(UTC)
    figures = told["figures"]
    assert figures["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (figures["probes"], figures["pictures"], figures["agreement"]) == (7, 6, 1.0)
    assert 0 < figures["old"]["accuracy"] == figures["new"]["accuracy"]
    assert "compare 1.0 and 2.0: 6 pictures" in done.stderr

    back = json.loads(classifier(*running.options, "rollback", "--json").stdout)
    assert [back[key] for key in keys[:4]] == ["rollback", "cifar10", "2.0", "1.0"]
    listed = classifier(*running.options, "history", "--json")
    assert json.loads(listed.stdout) == [told, back]
    head, _, first, second = classifier(*running.options, "history").stdout.splitlines()[1:5]
    assert head.split()[:4] == ["when", "who", "what", "model"]
    accuracy = f"{figures['old']['accuracy']:.2%}"
    shown = [told["when"], told["who"], "promote", "cifar10", "1.0", "2.0"]
    assert first.split() == [*shown, f"{accuracy},", accuracy, "100.00%"]
    assert second.split()[-2:] == ["–", "–"]


def assert_refused(deployment: Deployment, message: str, *options: str) -> None:
    """Fail unless a promotion of 2.0 is refused and leaves all as it was."""
    before = deployment.place.releases.read_text()
    done = classifier(*deployment.options, "promote", "2.0", *options)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert default(deployment) == "1.0"
    assert deployment.place.releases.read_text() == before
    assert entries(deployment) == []
    deployment.server.check()


def test_a_worse_version_is_refused(running: Deployment, cats: Path, tmp_path: Path) -> None:
    state = load_file(archive.WEIGHTS)
    state["fc2.bias"][9] += 100
    torch.save(state, tmp_path / "trucks.pth")
    archive.build("cifar10", "2.0", tmp_path / "trucks.pth", running.place.model_store)
    assert_refused(running, "2.0 is right about 0.00%, 1.0 about", f"--data={cats}")


def test_pictures_whose_classes_are_no_labels_decide_nothing(
    running: Deployment, cats: Path
) -> None:
    (cats / "cat").rename(cats / "Cat")
    assert_refused(running, "folders that are no labels: Cat. The labels are", f"--data={cats}")


def test_a_version_of_other_labels_is_refused_unless_it_is_wanted(
    running: Deployment, tmp_path: Path
) -> None:
    torch.save(load_file(archive.WEIGHTS), tmp_path / "net.pth")
    names = json.loads(Path("model/index_to_name.json").read_text()) | {"3": "tiger"}
    (tmp_path / "index_to_name.json").write_text(json.dumps(names))
    archive.build("cifar10", "2.0", tmp_path / "net.pth", running.place.model_store)
    assert_refused(running, "2.0 has the labels plane, car, bird, tiger, deer and 5 more, 1.0 has")
    wanted = ("promote", "2.0", "--other-labels", "--probes=5", "--watch=0")
    done = classifier(*running.options, *wanted)
    assert done.returncode == 0, done.stderr
    assert default(running) == "2.0"


def test_what_was_promoted_is_not_replaced_unnoticed(running: Deployment, tmp_path: Path) -> None:
    done = classifier(*running.options, "promote", "2.0", "--probes=5", "--watch=0")
    assert done.returncode == 0, done.stderr
    other, store = tmp_path / "other.pth", running.place.model_store
    torch.save(load_file(archive.WEIGHTS), other)
    command = ("archive", "--version=2.0", f"--weights={other}")
    built = classifier(*running.options, *command)
    assert built.returncode == 1
    assert "cifar10-2.0.mar was promoted, and this would be another" in built.stderr
    running.server.check()
    archive.build("cifar10", "2.0", other, store)
    status = classifier(*running.options, "status")
    assert status.returncode == 1
    assert "cifar10-2.0.mar is not the archive that was promoted" in status.stderr
    assert "make serve" not in status.stderr


def spoil(deployment: Deployment, lines: str, version: str = "2.0") -> None:
    """Let a version run some lines before it reads a request."""
    begin = b"        try:\n            question = read("
    instead = textwrap.indent(lines, " " * 8).encode() + begin
    edit_handler(deployment.place.model_store / f"cifar10-{version}.mar", begin, instead)


def test_a_version_that_fails_after_the_switch_is_taken_back(running: Deployment) -> None:
    # All but the pictures of the comparison: the samples.
    lines = f"""\
if WARM_UP not in headers:
    self.seen = getattr(self, "seen", 0) + 1
    if self.seen > {len(checks(None))}:
        return answer.error(HTTPStatus.BAD_REQUEST, "no more")
"""
    spoil(running, lines)
    assert_refused(running, "2.0 failed at probe 1: ", "--probes=20")


def test_probes_are_asked_once(running: Deployment) -> None:
    """What fails in passing fails users, too: they shall not wait for the way back."""
    lines = f"""\
if WARM_UP not in headers:
    self.seen = getattr(self, "seen", 0) + 1
    if self.seen == {len(checks(None)) + 3}:
        raise RuntimeError("in passing")
"""
    spoil(running, lines)
    assert_refused(running, "2.0 failed at probe 3: ", "--probes=20")


def test_a_version_that_fails_users_but_no_probe_is_taken_back(running: Deployment) -> None:
    """What users send may be what no check has."""
    (image,) = crops(1)
    lines = f"""\
if len(next(iter(parts.values()))) == {len(image)}:
    return answer.error(HTTPStatus.INTERNAL_SERVER_ERROR, "odd")
"""
    spoil(running, lines)
    statuses: Counter[int] = Counter()
    done = threading.Event()

    def use() -> None:
        while not done.is_set():
            statuses[running.predict(image).status_code] += 1

    user = threading.Thread(target=use)
    user.start()
    try:
        assert_refused(running, "after the switch", "--probes=5", "--watch=3")
    finally:
        done.set()
        user.join()
    assert statuses[500] > 0
    assert statuses.keys() == {200, 500}


def test_a_version_that_cannot_start_is_refused(running: Deployment) -> None:
    def damaged(name: str, data: bytes) -> bytes:
        return data[:-1] + b"\x55" if name == "weights.safetensors" else data

    edit(running.place.model_store / "cifar10-2.0.mar", damaged)
    assert_refused(running, "2.0: its workers can't start: ")


def test_a_server_stays_ready_while_a_version_is_promoted(running: Deployment) -> None:
    """Else a load balancer would take it out, and the watch would see no traffic."""
    found, done = set(), threading.Event()

    def look() -> None:
        while not done.is_set():
            found.add(ask(running)[0])
            time.sleep(0.1)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        promoted = classifier(*running.options, "promote", "2.0", "--probes=5", "--watch=2")
    finally:
        done.set()
        looking.join()
    assert promoted.returncode == 0, promoted.stderr
    assert "requests, 0.0% of them failed" in promoted.stdout
    assert found == {200}


def test_a_damaged_picture_among_the_data_stops_no_promotion(
    running: Deployment, cats: Path
) -> None:
    (cats / "cat" / "damaged.png").write_bytes(next(crops(1))[:50])
    done = classifier(*running.options, "promote", "2.0", f"--data={cats}", "--watch=0")
    assert done.returncode == 0, done.stderr
    assert default(running) == "2.0"


def test_what_is_to_be_served_later_is_not_served_by_a_promotion(running: Deployment) -> None:
    running.release("1.0", ["1.0", "3.0"])
    done = classifier(*running.options, "promote", "2.0", "--probes=5", "--watch=0")
    assert done.returncode == 0, done.stderr
    (released,), (served,) = running.server.releases, running.server.served
    assert released.versions == ("1.0", "3.0", "2.0")
    assert served.versions == ("1.0", "2.0")
    assert ask(running)[0] == 200


def test_an_archive_that_changed_since_it_was_loaded_is_refused(
    deployment: Deployment, tmp_path: Path
) -> None:
    store, other = deployment.place.model_store, tmp_path / "other.pth"
    archive.build("cifar10", "2.0", Path(archive.WEIGHTS), store)
    deployment.release("1.0", ["1.0", "2.0"])
    deployment.start()
    torch.save(load_file(archive.WEIGHTS), other)
    archive.build("cifar10", "2.0", other, store)
    done = classifier(*deployment.options, "promote", "2.0")
    assert done.returncode == 1
    assert "cifar10-2.0.mar has changed since it was loaded" in done.stderr
    assert default(deployment) == "1.0"


def test_an_archive_is_served_only_as_it_was_promoted(deployment: Deployment) -> None:
    store = deployment.place.model_store
    archive.build("cifar10", "2.0", Path(archive.WEIGHTS), store)
    deployment.release("2.0", ["2.0"])
    entry = history.Entry("promote", "cifar10", "1.0", "2.0", figures={"sha256": "of another"})
    history.append(deployment.place.history, entry)
    with pytest.raises(
        ArchiveError, match=r"cifar10-2\.0\.mar is not the archive that was promoted"
    ):
        deployment.start()
    assert deployment.server.process() is None
    sha256 = deployment.server.archive_sha256("cifar10", "2.0")
    history.append(deployment.place.history, replace(entry, figures={"sha256": sha256}))
    deployment.start()


def test_a_rollback_is_kept_whatever_the_probes_find(deployment: Deployment) -> None:
    store = deployment.place.model_store
    archive.build("cifar10", "2.0", Path(archive.WEIGHTS), store)
    lines = """\
if "X-Check" in headers:
    return answer.error(HTTPStatus.INTERNAL_SERVER_ERROR, "odd")
"""
    spoil(deployment, lines, "1.0")
    deployment.start()
    done = classifier(*deployment.options, "promote", "2.0", "--probes=5", "--watch=0")
    assert done.returncode == 0, done.stderr
    back = classifier(*deployment.options, "rollback")
    assert back.returncode == 0, back.stderr
    assert "1.0 failed 5 of 5: " in back.stdout
    assert default(deployment) == "1.0"


def test_what_is_kept_is_not_taken_back(running: Deployment) -> None:
    """As by Ctrl-C right after releases.toml was replaced: the monitor brings it to its end."""
    script = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "raise KeyboardInterrupt")
    command = [sys.executable, "-c", script, "history", *running.options, "promote", "2.0"]
    done = subprocess.run(
        [*command, "--probes=5", "--watch=0"], capture_output=True, text=True, timeout=240
    )
    assert done.returncode != 0
    wait_for(lambda: not running.place.journal.exists())
    assert default(running) == "2.0"
    (release,) = releases.read(running.place.releases)
    assert release.default == "2.0"
    assert entries(running) == [("promote", "1.0", "2.0")]


def test_where_nobody_can_switch_back_the_journal_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = mock.Mock()
    server.place = Place(run=tmp_path)
    server.release.return_value = release = Release("cifar10", "1.0", ("1.0",))
    server.management.set_default.side_effect = [None, httpx.ReadTimeout("")]
    promotion = Promotion(server, "cifar10", "2.0", [], watch=0, tell=lambda _: None)
    failure = mock.Mock(side_effect=ServerError("2.0 failed at probe 1"))
    monkeypatch.setattr(promotion, "_probe", failure)
    entry = history.Entry("promote", "cifar10", "1.0", "2.0")
    with pytest.raises(ServerError, match="failed at probe 1"):
        promotion._switch(release, entry, is_new=True)
    assert server.place.journal.exists()
    server.management.set_default.side_effect = None
    with pytest.raises(ServerError, match="failed at probe 1"):
        promotion._switch(release, entry, is_new=True)
    assert not server.place.journal.exists()


def test_a_killed_promotion_of_a_model_that_is_released_no_more_blocks_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "releases.toml").write_text("[cifar10")
    server = Server(Place(run=tmp_path / "run", releases=tmp_path / "releases.toml"))
    monkeypatch.setattr(server, "management", mock.Mock())
    server.place.run.mkdir()
    journal = Journal(server.place.journal)
    journal.write(history.Entry("promote", "gone", "1.0", "2.0"), is_new=True)
    monkeypatch.setattr(process, "find", lambda _: None)  # who wrote it runs no more
    with pytest.raises(ReleasesError):  # who mends the file finds the promotion brought to an end
        recover(server)
    assert server.place.journal.exists()
    server.place.releases.write_text('[cifar10]\ndefault = "1.0"\nversions = ["1.0"]\n')
    assert "released no more" in (recover(server) or "")
    assert not server.place.journal.exists()
    assert recover(server) is None


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ("", None),
        ('Requests2XX_total{Level="Host"} 8.0\nRequests5XX_total{Level="Host"} 2.0\n', (10, 2)),
        ('CPUUtilization{Level="Host"} 8.0\n', (0, 0)),
    ],
)
def test_metrics_that_are_only_logged_tell_nothing(
    monkeypatch: pytest.MonkeyPatch, metrics: str, expected: tuple[float, float] | None
) -> None:
    said = httpx.Response(200, text=metrics, request=httpx.Request("GET", "http://server/metrics"))
    monkeypatch.setattr(httpx, "get", lambda *_, **__: said)
    found = answered.read("http://server")
    assert (found and (found.requests, found.failed)) == expected


@pytest.mark.parametrize(("step", "left"), STEPS.items(), ids=STEPS)
def test_a_kill_leaves_one_default_now_and_after_a_restart(
    running: Deployment, step: str, left: str
) -> None:
    command = [sys.executable, "-c", KILLED, step, *running.options, "promote", "2.0"]
    done = subprocess.run(
        [*command, "--probes=5", "--watch=0"], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == -9, done.stderr
    wait_for(lambda: not running.place.journal.exists() and default(running) == left)
    (release,) = releases.read(running.place.releases)
    assert release.default == left
    assert entries(running) == ([("promote", "1.0", "2.0")] if left == "2.0" else [])
    running.stop()
    running.start()
    assert default(running) == left


@pytest.mark.parametrize("version", ["", "cifar10:", "cifar10:latest", "2.0/"])
def test_what_is_no_version_is_refused(running: Deployment, version: str) -> None:
    """TorchServe takes none for the default: that would be taken out of service at the end."""
    done = classifier(*running.options, "promote", version)
    assert done.returncode == 1
    assert "is no version by PEP 440" in done.stderr
    assert default(running) == "1.0"


def test_an_old_failure_in_the_log_is_no_reason(running: Deployment) -> None:
    """Nor is one of another version: that is what a new one may be to end."""
    sizes = config.sizes(running.server.releases[0], running.place.model_config)
    running.server.management.register("cifar10-2.0.mar", sizes)  # without workers
    broken = "Backend worker process died.\nImportError: nothing of that name"
    lines = [
        f"2026-01-01T00:00:00,000 INFO  W-9009-cifar10_{version}-stdout MODEL_LOG - {line}\n"
        for version in ("1.0", "2.0")
        for line in broken.splitlines()
    ]
    with (running.place.logs / "torchserve.log").open("a") as log:
        log.writelines(lines)
    done = classifier(*running.options, "promote", "2.0", "--watch=0", "--probes=5")
    assert done.returncode == 0, done.stderr


def test_a_rollback_waits_for_one_worker_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "LOAD_DEADLINE", 0.0)
    monkeypatch.setattr(log, "read", lambda _: "")
    server = mock.Mock()
    server.management.workers.return_value = [Worker(1, is_ready=True), Worker(2, is_ready=False)]
    rollout.scale(server, "cifar10", "1.0", workers=2, enough=1)
    with pytest.raises(ServerError, match="not READY after"):
        rollout.scale(server, "cifar10", "1.0", workers=2)
    failed = "2026-01-01T00:00:00,000 INFO  W-9000-cifar10_1.0{} MODEL_LOG - {}\n"
    died = ["Backend worker process died.", "ImportError: no such thing"]
    for thread, reason in (("", "can't start: ImportError"), ("rc1", "not READY after")):
        texts = iter(["", "".join(failed.format(thread + "-stdout", line) for line in died)])
        monkeypatch.setattr(log, "read", lambda _, texts=texts: next(texts))
        with pytest.raises(ServerError, match=reason):
            rollout.scale(server, "cifar10", "1.0", workers=2)


def test_a_log_that_is_rotated_still_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = "2026-01-01T00:00:00,000 INFO  W-9000-cifar10_1.0-stdout MODEL_LOG - {}\n"
    died = ["Backend worker process died.", "ImportError: no such thing"]
    texts = iter(["x" * 1000, "".join(failed.format(line) for line in died)])
    monkeypatch.setattr(log, "read", lambda _: next(texts))
    server = mock.Mock()
    server.management.workers.return_value = []
    with pytest.raises(ServerError, match="can't start: ImportError"):
        rollout.scale(server, "cifar10", "1.0", workers=2)


@pytest.mark.parametrize(("action", "enough"), [("rollback", 1), ("promote", 2)])
def test_who_goes_back_is_in_a_hurry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, enough: int
) -> None:
    asked: list[int] = []
    server = mock.Mock()
    server.place.model_config = Path("model/model-config.yaml")
    server.state.changed.return_value = []
    server.management.versions.return_value = {"1.0": 1}
    monkeypatch.setattr(rollout, "scale", lambda *arguments: asked.append(arguments[-1]))
    monkeypatch.setattr("classifier.releasing.promotion.warm_up", lambda *_: None)
    back = Promotion(server, "cifar10", "1.0", [], tell=lambda _: None, action=action)
    back._bring_up(Release("cifar10", "2.0", ("1.0", "2.0"), workers=2), is_new=False)
    assert asked == [enough]
