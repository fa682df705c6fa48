"""The commands that classify and compare: what they take, what they print, how they end."""

from __future__ import annotations

import contextlib
import csv
import functools
import http.server
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import termios
import threading
from typing import TYPE_CHECKING

import pytest

from classifier.archiving import archive
from classifier.errors import InputError
from classifier.predicting import pictures
from classifier.predicting.outcomes import MOST_GONE
from classifier.serving import log, monitor

from .images import SAMPLE, crops
from .test_client import Scripted, error
from .test_lifecycle import COMMAND, classifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .deployment import Deployment


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 40 crops, of which one is damaged, and a note."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, data in enumerate(crops(40)):
        (folder / ("more" if number % 2 else ".") / f"{number:02}.png").write_bytes(data)
    damaged = folder / "39.jpg"
    damaged.write_bytes(b"\xff\xd8\xff\xe0 no more")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.mark.parametrize("local", [False, True])
def test_predict_goes_on_after_failures_and_lists_them(
    shared_deployment: Deployment, photos: Path, local: bool
) -> None:
    options = ["--local"] if local else []
    said = classifier(*shared_deployment.options, "predict", *options, "--json", str(photos))
    assert said.returncode == 1
    lines = [json.loads(line) for line in said.stdout.splitlines()]
    assert [line["image"] for line in lines] == [s.name for s in pictures.find([str(photos)])]
    failed = [line for line in lines if "error" in line]
    assert [line["image"] for line in failed] == [str(photos / "39.jpg")]
    for line in lines:
        if line not in failed:
            assert line["version"] == "1.0"
            assert line["probability"] == max(line["probabilities"].values())
    assert f"classifier: {photos / '39.jpg'}: " in said.stderr
    assert "41 pictures, " in said.stderr
    assert "Traceback" not in said.stderr


def test_predict_by_version_and_its_forms(shared_deployment: Deployment) -> None:
    ask = functools.partial(classifier, *shared_deployment.options, "predict")
    text = ask("cifar10:1.1", str(SAMPLE))
    assert (text.returncode, text.stderr) == (0, "")
    label, probability, name = text.stdout.split()
    assert (label, name) == ("cat", str(SAMPLE))
    assert probability.endswith("%")
    (row,) = csv.DictReader(io.StringIO(ask("cifar10:latest", "--format=csv", str(SAMPLE)).stdout))
    assert (row["label"], row["version"], row["error"]) == ("cat", "1.1", "")
    other = ask("--server", shared_deployment.inference, str(SAMPLE))
    assert other.stdout.startswith("cat")


@pytest.fixture
def latin(tmp_path: Path) -> Path:
    """A folder of a picture whose name is no UTF-8, and one whose name is."""
    folder = tmp_path / "latin"
    folder.mkdir()
    for name in (b"caf\xe9.jpg", "dé.jpg".encode()):
        shutil.copy(SAMPLE, folder / os.fsdecode(name))
    return folder


@pytest.mark.parametrize("form", ["text", "json", "csv"])
def test_names_that_are_no_text_are_shown(
    shared_deployment: Deployment, latin: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")
    said = classifier(*shared_deployment.options, "predict", f"--format={form}", str(latin))
    assert said.returncode == 0, said.stderr
    assert "caf\\udce9.jpg" in said.stdout
    assert "dé.jpg" in said.stdout
    if form == "json":
        first = json.loads(said.stdout.splitlines()[0])
        assert os.fsencode(first["image"]).endswith(b"caf\xe9.jpg")


def test_a_report_shows_names_that_are_no_text(
    deployment: Deployment, latin: Path, trucks: Path, tmp_path: Path
) -> None:
    archive.build("cifar10", "2.0", trucks, deployment.place.model_store)
    report = tmp_path / "report.html"
    options = ["--local", f"--data={latin}", f"--html={report}"]
    said = classifier(*deployment.options, "compare", "1.0", "2.0", *options)
    assert said.returncode == 0, said.stderr
    text = report.read_text(encoding="utf-8")
    assert "caf\\udce9.jpg" in text
    assert text.count("data:image/png;base64,") == 2


@pytest.fixture
def website(tmp_path: Path) -> Iterator[str]:
    """The address of a server of files: cat.jpg is there."""
    folder = tmp_path / "website"
    folder.mkdir()
    shutil.copy(SAMPLE, folder)
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def test_predict_takes_addresses_patterns_and_standard_input(
    shared_deployment: Deployment, website: str, photos: Path
) -> None:
    there, absent = f"{website}/cat.jpg", f"{website}/dog.jpg"
    said = classifier(*shared_deployment.options, "predict", there, absent)
    assert said.returncode == 1
    assert said.stdout.startswith("cat ")
    assert f"{absent} answers 404" in said.stderr
    said = classifier(*shared_deployment.options, "predict", "--json", str(photos / "0*.png"))
    assert len(said.stdout.splitlines()) == 5
    said = classifier(*shared_deployment.options, "predict", "-", "-", stdin=SAMPLE)
    row = ["cat", said.stdout.split()[1], "-"]
    assert said.stdout.split() == [*row, *row], "each means the same picture"


def test_who_waits_for_a_server_is_told_why_and_may_go(free_port: int) -> None:
    """Both not only after the minute for which the client asks again."""
    url = f"http://127.0.0.1:{free_port}"
    command = [*COMMAND, "predict", f"--server={url}", "mine:1.0", str(SAMPLE)]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as waiting:
        assert waiting.stderr is not None
        told = waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        _, rest = waiting.communicate(timeout=30)
    assert told.startswith(f"classifier: {url} ")
    assert told.endswith(": asking again, for 60 s\n")
    assert "asking again" not in rest, "once is enough"


def test_predict_lists_what_failed_where_the_server_has_gone(photos: Path) -> None:
    gone = Scripted(lambda _: error(500, "Prediction failed"))
    said = classifier("predict", f"--server={gone.url}", str(photos))
    gone.server.shutdown()
    gone.server.server_close()
    assert said.returncode == 1
    names = [source.name for source in pictures.find([str(photos)])][:MOST_GONE]
    *listed, last = said.stderr.splitlines()
    why = f"{gone.url} answers 500: Prediction failed"
    assert listed == [f"classifier: {name}: {why}" for name in names]
    assert last == f"classifier: no answer to {MOST_GONE} pictures in turn: {why}"
    assert len(said.stdout.splitlines()) == MOST_GONE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "a picture has an empty name"),
        (["absent.jpg"], "absent.jpg: no such file, and nothing that it matches"),
        (["tests/chaos"], "tests/chaos holds no pictures"),
        (["cifar10:9.9", str(SAMPLE)], "answers 404: "),
        (["cifar10:9.9", "--local", str(SAMPLE)], "has no archive of cifar10:9.9"),
        (["pets:1.0", "--local", str(SAMPLE)], "has no archive of pets:1.0"),
        (["cifar10"], "name a picture, too"),
        (
            ["cifar10:latest", "--server=http://127.0.0.1:1", str(SAMPLE)],
            "cifar10:latest is the newest in",
        ),
        (["--local", "--server=http://127.0.0.1:1", str(SAMPLE)], "--local asks no server"),
        (["nets:1.0", str(SAMPLE)], "nets:1.0 is no file, and no model of releases.toml (cifar10)"),
    ],
)
def test_what_predict_cannot_do_is_one_line(
    shared_deployment: Deployment, arguments: list[str], message: str
) -> None:
    said = classifier(*shared_deployment.options, "predict", *arguments)
    assert said.returncode != 0
    assert message in " ".join(said.stderr.split())
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize("command", [["status"], ["stop"], ["promote", "2.0"]])
def test_in_another_folder_nothing_is_told_of_a_server(tmp_path: Path, command: list[str]) -> None:
    done = subprocess.run([*COMMAND, *command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "classifier: releases.toml is missing: run this in the project's folder\n"
    )
    assert not list(tmp_path.iterdir())


def test_a_server_elsewhere_is_asked_from_any_folder(
    shared_deployment: Deployment, tmp_path: Path
) -> None:
    shutil.copy(SAMPLE, tmp_path)
    command = [*COMMAND, "predict", f"--server={shared_deployment.inference}", SAMPLE.name]
    for words in (command, [*command[:-1], "cifar10:1.1", SAMPLE.name]):
        said = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr
        assert said.stdout.startswith("cat")


def test_predict_without_a_server_says_what_to_do(deployment: Deployment) -> None:
    said = classifier(*deployment.options, "predict", str(SAMPLE))
    assert said.returncode == 1
    assert said.stderr == (
        "classifier: TorchServe is not running: `make serve`, or --local without it\n"
    )


def test_compare_tells_accuracy_agreement_and_where_they_differ(
    deployment: Deployment, trucks: Path, tmp_path: Path
) -> None:
    archive.build("cifar10", "2.0", trucks, deployment.place.model_store)
    data = tmp_path / "val"
    for label, seed in (("cat", 0), ("truck", 1)):
        (data / label).mkdir(parents=True)
        for number, image in enumerate(crops(10, seed)):
            (data / label / f"{number}.png").write_bytes(image)
    report = tmp_path / "report.html"
    options = ["--local", f"--data={data}", f"--html={report}"]
    said = classifier(*deployment.options, "compare", "1.0", "2.0", *options, "--json")
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert found["pictures"] == 20
    assert found["new"]["accuracy"] == 0.5, "all are trucks to it"
    assert found["new"]["confidence"] > 0.99
    expected = sum(d["old"]["probabilities"] != {} for d in found["differences"])
    assert found["agreement"] == pytest.approx(1 - expected / 20)
    assert sum(change["pictures"] for change in found["changes"]) == expected
    assert all(change["to"] == "truck" for change in found["changes"])
    text = report.read_text()
    assert text.count("<img ") == expected
    assert text.count("data:image/png;base64,") == expected
    assert "://" not in text, "it needs nothing from anywhere"
    table = classifier(*deployment.options, "compare", "1.0", "2.0", *options)
    assert "50.00%" in table.stdout
    lines = [line.split() for line in table.stdout.splitlines()]
    assert ["cifar10:1.0", "cifar10:2.0", "pictures"] in lines
    for change in found["changes"]:
        assert [change["from"], "truck", str(change["pictures"])] in lines
    assert found["changes"], "or there is nothing to see"


@pytest.mark.parametrize(
    "command", [["compare", "1.0", "2.0"], ["shadow", "2.0", "--for=1h"]], ids=["compare", "shadow"]
)
@pytest.mark.parametrize(
    ("report", "message"), [("absent/report.html", "is missing"), (".", "is a directory")]
)
def test_where_no_report_can_be_written_nothing_is_asked(
    deployment: Deployment, photos: Path, command: list[str], report: str, message: str
) -> None:
    options = [f"--data={photos}", f"--html={photos / report}"]
    said = classifier(*deployment.options, *command, *options)
    assert said.returncode == 2
    assert message in re.sub(r"[│\s]+", " ", said.stderr), "and not that no server runs"


def test_what_was_found_is_shown_before_its_report_is_written(
    deployment: Deployment, photos: Path
) -> None:
    options = ["--local", f"--data={photos / 'more'}", "--html=/dev/full"]
    said = classifier(*deployment.options, "compare", "1.0", "1.0", *options)
    assert said.returncode == 1
    assert "on 100.00% they agree" in said.stdout
    assert said.stderr.startswith("classifier: ")
    assert "No space left" in said.stderr


def test_compare_on_a_server_is_that_of_the_archives(
    shared_deployment: Deployment, photos: Path
) -> None:
    (photos / "39.jpg").unlink()
    found = []
    for options in ([], ["--local"]):
        said = classifier(
            *shared_deployment.options,
            "compare",
            "1.0",
            "1.1",
            f"--data={photos}",
            "--json",
            *options,
        )
        assert said.returncode == 0, said.stderr
        found.append(json.loads(said.stdout))
    assert found[0]["agreement"] == found[1]["agreement"]
    assert found[0]["new"]["accuracy"] is None, "nothing is labelled"


@pytest.mark.parametrize("options", [[], ["--local"]], ids=["server", "local"])
def test_compare_refuses_classes_that_are_no_labels(
    shared_deployment: Deployment, photos: Path, tmp_path: Path, options: list[str]
) -> None:
    (photos / "more").rename(tmp_path / "cat")
    arguments = [*shared_deployment.options, "compare", "1.0", "1.1", f"--data={tmp_path}"]
    said = classifier(*arguments, *options)
    assert said.returncode == 1
    assert said.stderr.startswith(
        "classifier: the pictures lie in folders that are no labels: photos. "
        "The labels are plane, car, "
    )
    assert said.stdout == ""


def test_compare_fails_where_a_version_answers_nothing(
    shared_deployment: Deployment, photos: Path
) -> None:
    arguments = [*shared_deployment.options, "compare", "1.0", "9.9", f"--data={photos}"]
    said = classifier(*arguments)
    assert said.returncode == 1
    assert said.stderr.startswith("classifier: cifar10:9.9 has no answer to any picture: http")
    assert "9.9 does not exist" in said.stderr
    arguments[-3:-1] = ["9.9", "1.0"]
    said = classifier(*arguments)
    assert said.returncode == 1
    assert said.stderr.startswith("classifier: cifar10:9.9 has no answer to any picture: `classif")


def test_hidden_folders_are_no_classes(photos: Path) -> None:
    (photos / ".ipynb_checkpoints").mkdir()
    (photos / ".ipynb_checkpoints" / "1.png").write_bytes(b"")
    assert {source.label for source in pictures.labelled(photos)} == {"more"}


def test_pictures_of_a_folder_have_their_classes(photos: Path, tmp_path: Path) -> None:
    found = pictures.labelled(photos)
    assert {source.label for source in found} == {"more"}
    with pytest.raises(InputError, match="holds no pictures: they belong into"):
        pictures.labelled(photos / "more")
    with pytest.raises(InputError, match="is missing"):
        pictures.labelled(tmp_path / "absent")


def test_what_is_hidden_is_neither_class_nor_picture(photos: Path) -> None:
    named = pictures.find([str(photos)])
    shutil.copytree(photos / "more", photos / ".ipynb_checkpoints")
    (photos / "more" / "._0.png").write_bytes(b"what macOS leaves beside pictures")
    assert pictures.find([str(photos)]) == named
    assert {source.label for source in pictures.labelled(photos)} == {"more"}
    hidden = photos.rename(photos.with_name(".photos"))
    assert len(pictures.find([str(hidden)])) == len(named), "what lies above doesn't matter"


def test_a_folder_has_classes_unless_pictures_lie_beside_them(photos: Path) -> None:
    assert {source.label for source in pictures.dataset(photos)} == {""}
    for path in photos.glob("*.*g"):
        path.unlink()
    (photos / ".DS_Store").write_bytes(b"beside the classes, as notes.txt is")
    assert {source.label for source in pictures.dataset(photos)} == {"more"}


def on_a_terminal(*arguments: str) -> str:
    """Run the command on a terminal of its own; return what is seen there."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 200))
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ):
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # that the other side is closed
            while some := os.read(ours, 2**16):
                seen += some
    os.close(ours)
    return seen.decode()


def test_bars_and_colours_are_for_terminals(deployment: Deployment, photos: Path) -> None:
    (photos / "39.jpg").unlink()
    for command, only_there in (
        (["predict", "--local", str(photos)], "| 40/40 ["),
        (["models"], "\x1b["),
    ):
        piped = classifier(*deployment.options, *command)
        assert piped.returncode == 0, piped.stderr
        seen = on_a_terminal(*deployment.options, *command)
        assert only_there in seen
        for control in ("\x1b", "\r", "%|"):
            assert control not in piped.stdout + piped.stderr
        plain = re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", seen)
        assert all(line.strip() in plain for line in piped.stdout.splitlines())


@pytest.fixture
def logs(deployment: Deployment) -> Path:
    """The folder of a server's logs, with both."""
    folder = deployment.place.logs
    folder.mkdir(parents=True)
    (folder / log.FILE).write_text("".join(f"server {number}\n" for number in range(60)))
    (folder / monitor.LOG).write_text("monitor 0\nmonitor 1\n")
    return folder


def test_logs_shows_the_end_of_both(deployment: Deployment, logs: Path) -> None:
    said = classifier(*deployment.options, "logs", "--lines=1").stdout
    assert re.findall(r"^(?:server|monitor) \d+$", said, re.MULTILINE) == ["server 59", "monitor 1"]
    said = classifier(*deployment.options, "logs").stdout
    assert re.findall(r"^server (\d+)$", said, re.MULTILINE) == [str(n) for n in range(10, 60)]
    shutil.rmtree(logs)
    said = classifier(*deployment.options, "logs").stderr
    assert said == f"classifier: {logs} holds no logs: nothing was started\n"


def test_logs_follows_both_until_ctrl_c(deployment: Deployment, logs: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, *deployment.options, "logs", "-f"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches all of it, and nobody else
        # Tests that run in the background inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        shown = iter(process.stdout)
        for name, last, new in (
            (log.FILE, "monitor 1\n", "server 60\n"),
            (monitor.LOG, "server 60\n", "monitor 2\n"),
        ):
            assert last in shown
            with (logs / name).open("a") as file:
                file.write(new)
        assert "monitor 2\n" in shown
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_CLASSIFIER_COMPLETE", f"source_{shell}")
    script = classifier().stdout
    assert "_CLASSIFIER_COMPLETE=complete_" in script
    monkeypatch.setenv("_CLASSIFIER_COMPLETE", f"complete_{shell}")
    asked = {
        "COMP_WORDS": "classifier pr",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "classifier pr",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    answer = classifier().stdout
    assert "predict" in answer
    assert "promote" in answer
    assert "rollback" not in answer


def test_every_command_has_an_example() -> None:
    listed = classifier("--help").stdout.partition("Commands:")[2]
    names = re.findall(r"^  (\w+)  ", listed, re.MULTILINE)
    assert len(names) >= 13
    for name in names:
        help_text = " ".join(classifier(name, "--help").stdout.split())
        assert f": classifier {name}" in help_text, name
