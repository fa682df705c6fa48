"""What the benchmarks decide and write; what they measure is not tested here."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bench import images, report, tune
from bench.__main__ import main as bench_main
from bench.servers import BenchError
from bench.tune import Goal, Trial
from classifier import releases

from .images import encode, sample


def trial(rate: float, p99: float, alone: float) -> Trial:
    return Trial({"workers": 2, "threads": 1, "batch": 16, "delay": 1}, rate, p99, alone)


FAST, EVEN, PROMPT, FAILED = (
    trial(5000, 50, 4),
    trial(4900, 30, 2.5),
    trial(3000, 10, 2),
    trial(0, math.inf, math.inf),
)
TRIALS = [FAST, EVEN, PROMPT, FAILED]


@pytest.mark.parametrize(
    ("goal", "best"),
    [
        (Goal(), EVEN),  # as good as the fastest, and quicker alone
        (Goal(p99=20), PROMPT),
        (Goal(p99=5), PROMPT),  # none keeps the limit: the nearest
        (Goal(latency=True), PROMPT),
    ],
)
def test_the_best_is_what_was_asked_for(goal: Goal, best: Trial) -> None:
    assert goal.best(TRIALS) is best


@pytest.mark.parametrize("cores", [1, 2, 3, 8, 64])
def test_workers_and_threads_leave_no_core_idle_or_fought_over(cores: int) -> None:
    ways = tune.splits(cores)
    assert {"workers": cores, "threads": 1} in ways or cores > tune.MOST_WORKERS
    assert {"workers": 1, "threads": cores} in ways
    assert all(cores // 2 < way["workers"] * way["threads"] <= cores for way in ways)


def test_only_for_latency_alone_a_batch_waits_for_nothing() -> None:
    assert {"delay": 0} in [size for stage in tune.stages(2, Goal(latency=True)) for size in stage]
    assert {"delay": 0} not in [size for stage in tune.stages(2, Goal()) for size in stage]


def test_what_is_best_is_kept_and_the_rest_of_releases_stays(tmp_path: Path) -> None:
    path = tmp_path / "releases.toml"
    before = Path("releases.toml").read_text()
    path.write_text(before)
    tune.keep(path, {"workers": 3, "threads": 2, "batch": 8, "delay": 5})
    assert [line for line in before.splitlines() if line not in path.read_text()] == []
    (release,) = releases.read(path)
    assert (release.workers, release.threads, release.batch, release.delay) == (3, 2, 8, 5)
    tune.keep(path, {"workers": 1})
    assert releases.read(path)[0].workers == 1


def test_without_wrk_nothing_is_tried(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    for main in (tune.main, bench_main):
        monkeypatch.setattr("sys.argv", ["bench"])
        assert main() == 1
        assert "wrk is not installed: apt-get install wrk" in capsys.readouterr().err


def test_the_table_marks_the_best() -> None:
    lines = tune.table(TRIALS, EVEN).splitlines()
    assert lines[2].startswith("| 2 | 1 | 16 | 1 | 5,000 |")
    assert [line for line in lines if line.endswith("best |")] == [lines[3]]


def test_own_images_are_read_from_any_folder(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="holds no images"):
        tune.own_images(tmp_path)
    for index in range(450):
        (tmp_path / str(index % 3)).mkdir(exist_ok=True)
        (tmp_path / str(index % 3) / f"{index}.jpg").write_bytes(encode(sample(), "JPEG"))
    assert 100 <= len(tune.own_images(tmp_path)) <= 200
    (tmp_path / "0" / "0.jpg").write_bytes(b"no image")
    with pytest.raises(BenchError, match=r"0/0\.jpg: not an image"):
        tune.own_images(tmp_path)


def test_what_an_earlier_run_has_sent_is_not_sent_again(tmp_path: Path) -> None:
    images.write([b"first", b"second", b"third"], tmp_path)
    for encoding, folder in images.write([b"other"], tmp_path).items():
        sent = [path.read_bytes() for path in folder.iterdir()]
        assert sent == [images.body(b"other", encoding)]


def test_only_what_is_between_the_marks_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nafter\n")
    for text in ("new", "newer"):
        report.put(page, "a", text)
        assert page.read_text() == f"before\n<!-- a -->\n\n{text}\n\n<!-- /a -->\nafter\n"
    with pytest.raises(ValueError, match="has no <!-- b -->"):
        report.put(page, "b", "text")
