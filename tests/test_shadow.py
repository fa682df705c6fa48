"""Shadows: what they ask, what they tell, and that nothing is left of them."""

from __future__ import annotations

import base64
import itertools
import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest
import requests

from classifier import Client, process
from classifier.archiving import archive
from classifier.predicting import pictures
from classifier.releasing import shadow
from classifier.serving import config
from handler.metrics import PERIOD

from .images import SAMPLE, crops
from .test_lifecycle import classifier, edit, edit_handler
from .test_monitor import wait_for
from .test_serving import metric

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .deployment import Deployment

RATE, PICTURES = 10, 5


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of different pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, data in enumerate(crops(PICTURES)):
        (folder / f"{number}.png").write_bytes(data)
    return folder


@pytest.fixture
def stored(deployment: Deployment, trucks: Path) -> Deployment:
    """A server of 1.0, not yet started, with 2.0 in its store, to which all are trucks."""
    archive.build("cifar10", "2.0", trucks, deployment.place.model_store)
    return deployment


def keep(deployment: Deployment, share: float) -> None:
    """Have the server keep requests from its next start on."""
    with deployment.place.releases.open("a") as file:
        file.write(f"keep = {share}\n")


@contextmanager
def left_as_it_was(deployment: Deployment) -> Iterator[None]:
    """Fail unless the server and releases.toml are afterwards as before."""
    before = deployment.place.releases.read_text()
    yield
    assert deployment.server.management.versions("cifar10") == {"1.0": 1}
    assert deployment.server.management.default("cifar10") == "1.0"
    assert deployment.place.releases.read_text() == before
    deployment.server.check()


def in_the_background(deployment: Deployment, *arguments: str) -> subprocess.Popen[str]:
    """Run `classifier shadow` meanwhile."""
    program = str(Path(sys.executable).parent / "classifier")
    command = [program, *deployment.options, "shadow", *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_replays_a_folder_and_tells_where_they_differ(
    stored: Deployment, photos: Path, tmp_path: Path
) -> None:
    stored.start()
    with Client(stored.inference) as client:
        labels = [client.predict(path).label for path in sorted(photos.iterdir())]
    differ = sum(label != "truck" for label in labels)
    assert differ, "or there is nothing to see"
    report = tmp_path / "report.html"
    options = [f"--data={photos}", f"--rate={RATE}", f"--html={report}", "--json"]
    with left_as_it_was(stored):
        said = classifier(*stored.options, "shadow", "2.0", "--for=2s", *options)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert found["pictures"] == 2 * RATE
    assert (found["old"]["name"], found["new"]["name"]) == ("1.0", "2.0")
    assert found["new"]["confidence"] > 0.99
    assert found["agreement"] == pytest.approx(1 - differ / PICTURES)
    assert sum(change["pictures"] for change in found["changes"]) == 2 * RATE * differ / PICTURES
    assert {change["to"] for change in found["changes"]} == {"truck"}
    assert len(found["differences"]) == differ, "each picture once"
    for side in (found["old"], found["new"]):
        assert 0 < side["p50"] <= side["p99"]
        assert side["failed"] == 0
    assert report.read_text().count("<img ") == differ
    assert "register cifar10:2.0" in said.stderr
    assert "retire cifar10:2.0" in said.stderr
    assert not stored.place.traffic.exists(), "nothing is kept unless releases.toml says so"


def test_its_answers_are_not_counted_and_what_was_served_stays(
    shared_deployment: Deployment, photos: Path
) -> None:
    server, options = shared_deployment, ["--for=1s", f"--data={photos}", "--json"]
    before = -1.0
    while before != (before := metric(server, "Answers_total")):
        time.sleep(2 * PERIOD)
    said = classifier(*server.options, "shadow", "cifar10:1.1", *options)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["pictures"] == shadow.RATE
    server.predict(SAMPLE.read_bytes(), "1.1")
    wait_for(lambda: metric(server, "Answers_total") > before)
    assert metric(server, "Answers_total") == before + 1
    assert server.server.management.versions("cifar10")["1.1"] == 1


def test_follows_what_users_ask(stored: Deployment) -> None:
    def keeps_less(name: str, data: bytes) -> bytes:
        if name != "handler/keep.py":
            return data
        assert b"MOST_FILES = 1_000\n" in data
        return data.replace(b"MOST_FILES = 1_000\n", b"MOST_FILES = 5\n")

    edit(stored.place.model_store / "cifar10-1.0.mar", keeps_less)
    keep(stored, 1.0)
    stored.start()
    folder, asked = stored.place.traffic / "cifar10", list(crops(20))
    with left_as_it_was(stored), Client(stored.inference) as client:
        running = in_the_background(stored, "2.0", "--for=3s", "--json")
        for image in itertools.cycle(asked):
            if running.poll() is not None:
                break
            client.predict(image)
    out, err = running.communicate()
    assert running.returncode == 0, err
    stored.stop()  # so that nobody writes what is looked at
    found = json.loads(out)
    assert found["pictures"] > 0
    assert found["new"]["confidence"] > 0.99
    assert {change["to"] for change in found["changes"]} == {"truck"}
    assert all(Path(d["image"]).parent == folder.resolve() for d in found["differences"])
    files = list(folder.iterdir())
    assert 0 < len(files) <= 5
    assert {path.read_bytes() for path in files} <= set(asked)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_only_pictures_of_users_are_kept(stored: Deployment, photos: Path) -> None:
    keep(stored, 1.0)
    stored.start()
    with left_as_it_was(stored):
        options = ["--for=1s", f"--data={photos}"]
        said = classifier(*stored.options, "shadow", "2.0", *options)
        assert said.returncode == 0, said.stderr
        warmed = {"X-Warm-Up": "1"}
        assert stored.predict(SAMPLE.read_bytes(), headers=warmed).status_code == 200
        assert stored.predict(b"no image").status_code == 400
        body = {"instances": [{"b64": base64.b64encode(SAMPLE.read_bytes()).decode()}]}
        url = f"{stored.inference}/v1/models/cifar10:predict"
        assert requests.post(url, json=body, timeout=60).status_code == 200
        assert stored.predict(SAMPLE.read_bytes()).status_code == 200
    folder = stored.place.traffic / "cifar10"
    wait_for(lambda: any(folder.glob("*.jpg")))
    (path,) = folder.iterdir()
    assert path.read_bytes() == SAMPLE.read_bytes()


def test_where_no_picture_comes_it_says_so(stored: Deployment) -> None:
    keep(stored, 0.5)
    stored.start()
    with left_as_it_was(stored):
        said = classifier(*stored.options, "shadow", "2.0", "--for=1s")
    assert said.returncode == 1
    assert said.stderr.splitlines()[-1] == ("classifier: no picture came: nothing was asked")


def test_failures_of_the_new_version_are_counted(stored: Deployment, photos: Path) -> None:
    edit_handler(
        stored.place.model_store / "cifar10-2.0.mar",
        b"            question = read(parts, self.model, self.version)\n",
        b"            raise ImageError('not today')\n",
    )
    stored.start()
    with left_as_it_was(stored):
        options = ["--for=1s", f"--data={photos}", "--json"]
        said = classifier(*stored.options, "shadow", "2.0", *options)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert found["new"]["failed"] == shadow.RATE
    assert (found["old"]["failed"], found["pictures"]) == (0, 0)
    assert "2.0 failed, first with: " in said.stderr
    assert "not today" in said.stderr


def test_a_failure_is_not_asked_again(stored: Deployment, photos: Path) -> None:
    stored.start()
    server = stored.server
    sizes = config.sizes(server.releases[0], stored.place.model_config)
    server.management.register("cifar10-2.0.mar", sizes)  # without workers: 503 at once
    options = ["--for=1s", f"--data={photos}", "--json"]
    said = classifier(*stored.options, "shadow", "2.0", *options)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["new"]["failed"] == shadow.RATE
    assert "answers 503" in said.stderr
    assert "asked again" not in said.stderr
    assert server.management.versions("cifar10") == {"1.0": 1, "2.0": 0}, "it was served before"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_ends_it_early_with_what_it_has(
    stored: Deployment, photos: Path, number: signal.Signals
) -> None:
    stored.start()
    with left_as_it_was(stored):
        running = in_the_background(stored, "2.0", "--for=1h", f"--data={photos}", "--json")
        counted = {"model_name": "cifar10", "model_version": "2.0"}
        wait_for(lambda: metric(stored, "ts_inference_requests_total", **counted) > 0)
        running.send_signal(number)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    assert json.loads(out)["pictures"] > 0
    assert "Traceback" not in err


def test_an_error_leaves_nothing_of_it(stored: Deployment, photos: Path) -> None:
    def breaks() -> Iterator[pictures.Source]:
        yield from pictures.find([str(photos)])
        assert set(stored.server.management.versions("cifar10")) == {"1.0", "2.0"}
        raise RuntimeError("whatever it is")

    stored.start()
    with left_as_it_was(stored), pytest.raises(RuntimeError, match="whatever it is"):
        shadow.Shadow(stored.server, "cifar10", "2.0", breaks()).run()


def test_what_was_released_meanwhile_stays(stored: Deployment, photos: Path) -> None:
    def released_meanwhile() -> Iterator[pictures.Source]:
        yield from pictures.find([str(photos)])
        stored.release("1.0", ["1.0", "2.0"])

    stored.start()
    shadow.Shadow(stored.server, "cifar10", "2.0", released_meanwhile()).run()
    stored.server.check()
    assert stored.server.management.versions("cifar10") == {"1.0": 1, "2.0": 1}


def test_workers_are_told_to_keep_nothing(shared_deployment: Deployment) -> None:
    running = shared_deployment.server.process()
    assert running is not None
    assert running.environ()[config.KEEP] == "{}"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["1.1", "--for=1s"], 1, "keeps no requests of cifar10: write `keep = 0.05` under"),
        (["1.0", "--for=1s", "--data=samples"], 1, "cifar10:1.0 is the default"),
        (["9.9", "--for=1s", "--data=samples"], 1, "has no archive of cifar10:9.9"),
        (["pets:1.0", "--for=1s", "--data=samples"], 1, "pets"),
        (["1.1", "--for=1s", "--data=tests/chaos"], 1, "tests/chaos holds no pictures"),
        (["1.1", "--for=1d", "--data=samples"], 2, "'1d' is no duration: write 60s, 5m or 1h"),
        (["1.1", "--for=0s", "--data=samples"], 2, "'0s' is no duration"),
        (["1.1", "--for=-5", "--data=samples"], 2, "'-5' is no duration"),
    ],
)
def test_what_it_cannot_do_is_one_line(
    shared_deployment: Deployment, arguments: list[str], status: int, message: str
) -> None:
    said = classifier(*shared_deployment.options, "shadow", *arguments)
    assert said.returncode == status
    assert message in " ".join(said.stderr.split())
    assert "Traceback" not in said.stderr
    assert set(shared_deployment.server.management.versions("cifar10")) == {"1.0", "1.1"}


def test_pictures_whose_classes_are_no_labels_are_refused(
    shared_deployment: Deployment, photos: Path
) -> None:
    photos.rename(photos.parent / "Cat")
    photos.mkdir()
    (photos.parent / "Cat").rename(photos / "Cat")
    said = classifier(*shared_deployment.options, "shadow", "1.1", "--for=1s", f"--data={photos}")
    assert said.returncode == 1
    assert "folders that are no labels: Cat. The labels are plane, car, " in said.stderr


def test_two_at_once_are_refused(shared_deployment: Deployment) -> None:
    options = ["1.1", "--for=1s", "--data=samples"]
    with process.exclusive(shared_deployment.place.run / "shadow.lock", "it is free"):
        said = classifier(*shared_deployment.options, "shadow", *options)
    assert (said.returncode, said.stderr) == (1, "classifier: another shadow is under way\n")


def test_a_replay_asks_all_classes_from_the_start(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(30):
            (tmp_path / label / f"{number}.jpg").touch()
    server = mock.Mock()
    server.place.model_store, server.management.default.return_value = tmp_path, "1.0"
    with mock.patch("classifier.archiving.store.labels", return_value=["cat", "dog"]):
        found = shadow.traffic(server, "pets", "2.0", 0.1, tmp_path, rate=1000)
        assert {source.label for source in itertools.islice(found, 20)} == {"cat", "dog"}


def test_a_replay_is_evenly_spaced_whatever_each_takes() -> None:
    sources = [pictures.Source("a"), pictures.Source("b"), pictures.Source("c")]
    begin, at = time.monotonic(), []
    for source in shadow.replay(sources, rate=50, seconds=0.2):
        at.append((source.name, time.monotonic() - begin))
        if len(at) == 3:
            time.sleep(0.05)  # what comes late is caught up
    assert [name for name, _ in at] == list("abcabcabca")
    assert all(when >= number / 50 for number, (_, when) in enumerate(at))


def test_follows_only_what_comes_and_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0.png").touch()
    numbers = itertools.count(1)

    def meanwhile(_: float) -> None:
        """Another file is kept, the next is half written, and an older one is deleted."""
        number = next(numbers)
        if number <= 3:
            (tmp_path / f"{number}.png").touch()
            (tmp_path / f".{number + 1}.png.part").touch()
        if 1 < number <= 3:
            (tmp_path / f"{number - 1}.png").unlink()

    monkeypatch.setattr(time, "sleep", meanwhile)
    found = [Path(source.name).name for source in shadow.follow(tmp_path, 0.2)]
    assert found == ["1.png", "2.png", "3.png"]


def test_a_picture_that_comes_while_many_are_under_way_is_left_out(
    shared_deployment: Deployment, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "AT_ONCE", 2)
    sources = pictures.find([str(photos)])
    one = shadow.Shadow(shared_deployment.server, "cifar10", "1.1", iter(sources))
    found = one.run()
    assert found is not None
    assert (found.pictures, one.left_out) == (2, PICTURES - 2)
