"""What the benchmarks decide and write; what they measure is not tested here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import subprocess
import sys
import time
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import requests
from tqdm import tqdm

import bench.__main__ as bench
from bench import costs, images, load, open_loop, page, report, servers, tune
from bench.servers import PEERS, PLAIN, SETTINGS, BenchError, Ours, Running, peer
from bench.tune import Goal, Trial
from classifier.archiving import archive
from classifier.errors import ArchiveError, InputError, ServerError
from classifier.place import Place
from classifier.process import end
from classifier.serving import config, releases
from classifier.serving.releases import Release
from classifier.serving.server import Server as OurServer

from .images import encode, sample

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from bench.report import Row


def trial(rate: float, p99: float, alone: float) -> Trial:
    return Trial({"workers": 2, "threads": 1, "batch": 16, "delay": 1}, rate, p99, alone)


FAST, EVEN, UNEVEN, PROMPT, FAILED = (
    trial(5000, 50, 4),
    trial(4900, 30, 2.5),
    trial(4800, 60, 2.4),
    trial(3000, 10, 2),
    trial(0, math.inf, math.inf),
)
TRIALS = [FAST, EVEN, UNEVEN, PROMPT, FAILED]


@pytest.mark.parametrize(
    ("goal", "best"),
    [
        (Goal(), EVEN),  # as good as the fastest, and quicker
        (Goal(p99=20), PROMPT),
        (Goal(p99=5), PROMPT),  # none keeps the limit: the nearest
        (Goal(latency=True), PROMPT),
    ],
)
def test_the_best_is_what_was_asked_for(goal: Goal, best: Trial) -> None:
    assert goal.best(TRIALS) is best


@pytest.mark.parametrize("cores", [1, 2, 3, 8, 64])
def test_workers_and_threads_leave_no_core_idle_or_fought_over(
    cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "gpus", lambda: 0)
    ways = tune.splits(cores)
    assert {"workers": cores, "threads": 1} in ways or cores > tune.MOST_WORKERS
    assert {"workers": 1, "threads": cores} in ways
    assert all(cores // 2 < way["workers"] * way["threads"] <= cores for way in ways)
    monkeypatch.setattr(config, "cpu_count", lambda: cores)
    default = config.sizes(Release("cifar10", "1.0", ("1.0",)), Path("model/model-config.yaml"))
    assert {"workers": default.workers, "threads": default.threads} in ways


def test_workers_on_a_gpu_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "gpus", lambda: 2)
    assert [way["workers"] for way in tune.splits(16)] == [8, 4, 2]
    assert all(way["threads"] for way in tune.splits(1))


def varied(name: str, key: str) -> list[int]:
    return [size[key] for stage in tune.stages(name, 2) for size in stage if key in size]


def test_what_a_peer_does_not_read_is_neither_varied_nor_kept() -> None:
    kept = json.loads(SETTINGS.read_text())["sizes"]
    for name, software in PEERS.items():
        (module,) = re.findall(r"bench\.peers\.\w+", " ".join(software.command))
        code = Path(module.replace(".", "/")).with_suffix(".py").read_text()
        read = [key for key in ("batch", "delay") if re.search(rf"\b{key.upper()}\b", code)]
        assert software.reads == ("workers", "threads", *read), name
        assert [key for key in ("batch", "delay") if varied(name, key)] == read
        assert tuple(kept[name]) == software.reads
        assert tuple(peer(name, "engine", PLAIN).settings) == software.reads
    for name in (Ours.name, "LitServe", "Ray Serve"):
        assert varied(name, "delay") == [0, 1, 2, 5]
        assert tune.begin(name)["delay"] == 0
    assert varied("mosec", "delay") == [1, 2, 5], "with 0 it waits for 10 ms"
    assert tune.begin("mosec")["delay"] == 1


@dataclass
class Scripted:
    """A server of a race or of the bench; its URL is its name, by which Asked answers."""

    name: str
    rates: Sequence[float | None] = ()
    kind: str = "engine"
    encoding: str = "raw"

    @contextmanager
    def running(self, _: bytes) -> Iterator[Running]:
        """Run it, if it has anything to answer."""
        if not self.rates:
            raise BenchError("it does not start")
        yield Running(self.name, [], 1.0)


class Asked:
    """What wrk is said to find: of each server its next rate; None is an answer of 500.

    Args:
        servers: that are asked.
        each: how many measurements find the same rate.
    """

    def __init__(self, servers: Sequence[Scripted], each: int = 1) -> None:
        self.rates = {server.name: server.rates for server in servers}
        self.each = each
        self.log: list[str] = []

    def __call__(self, url: str, _: Path, __: str, count: int, seconds: int) -> load.Result:
        """Answer in place of load.run, but for a warm-up."""
        if seconds == tune.WARM_UP:
            return load.Result(count, 1, 1, 1, 1)
        rate = self.rates[url][self.log.count(url) // self.each]
        self.log.append(url)
        if rate is None:
            raise load.LoadError("500")
        return load.Result(count, 1, rate, 1, 1)


@pytest.fixture
def race(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[list[float], list[str]]]:
    """Race servers by what each turn finds; return their rates, and who was asked, once a turn."""

    def run(*rates: Sequence[float | None]) -> tuple[list[float], list[str]]:
        raced = [Scripted(str(number), each) for number, each in enumerate(rates)]
        asked = Asked(raced, each=len((*tune.CONNECTIONS, 1)))
        monkeypatch.setattr(load, "run", asked)
        monkeypatch.setattr(servers, "REST", 0)
        folders = {"raw": tmp_path}
        entrants = [tune.Entrant({"batch": int(s.name)}, s, b"image", folders) for s in raced]
        with tqdm(disable=True) as bar:
            found = tune.race(entrants, bar)
        assert [str(trial.sizes["batch"]) for trial in found] == [s.name for s in raced]
        return [trial.rate for trial in found], asked.log[:: asked.each]

    return run


def test_those_compared_are_measured_in_turns(
    race: Callable[..., tuple[list[float], list[str]]],
) -> None:
    rates, asked = race((90.0, 110.0, 10.0, 100.0, 105.0), (80.0, 95.0, 9.0, 500.0, 90.0))
    assert rates == [100, 90], "the medians: a machine may stumble"
    assert "".join(asked) == "1001100110", "each time another one is first"


def test_what_fails_leaves_the_race_and_the_others_go_on(
    race: Callable[..., tuple[list[float], list[str]]],
) -> None:
    steady = (100.0,) * tune.TURNS
    assert race((), steady, (120.0, 120.0, None), steady)[0] == [0, 100, 0, 100]
    assert race((), ())[0] == [0, 0]


def test_of_each_size_the_best_is_kept_for_what_is_varied_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried = []

    def ran(entrants: list[tune.Entrant], _: object) -> list[Trial]:
        tried.append([each.sizes for each in entrants])
        rated = {1: 3, 8: 1, 16: 5, 32: 9, 64: 2}  # by batch
        return [Trial(s, s["workers"] * rated[s.get("batch", 1)], 1, 1) for s in tried[-1]]

    monkeypatch.setattr(tune, "OUT", tmp_path)
    monkeypatch.setattr(tune, "race", ran)
    monkeypatch.setattr(tune, "cpu_count", lambda: 2)
    tune.tune("FastAPI", [b""], Goal())
    assert tried == [[{"workers": 2, "threads": 1}, {"workers": 1, "threads": 2}]]
    tried.clear()
    trials = tune.tune("mosec", [b""], Goal())
    batches, delays = tried[1:]
    assert {sizes["workers"] for sizes in batches} == {2}
    assert [sizes["batch"] for sizes in batches] == [8, 16, 32, 64]
    assert {sizes["batch"] for sizes in delays} == {32}
    assert trials[0].sizes == {"workers": 2, "threads": 1, "batch": 32, "delay": 1}
    told = [json.dumps(trial.sizes) for trial in trials]
    assert len(told) == len(set(told)) == 7, "each once"


def test_sizes_of_which_none_works_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tune, "OUT", tmp_path)
    monkeypatch.setattr(
        tune, "race", lambda entrants, _: [Trial(e.sizes, 0, 9, 9) for e in entrants]
    )
    with pytest.raises(BenchError, match="FastAPI answers all requests with none of the sizes"):
        tune.tune("FastAPI", [b""], Goal())


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
    for main in (tune.main, bench.main):
        monkeypatch.setattr("sys.argv", ["bench"])
        assert main() == 1
        assert "wrk is not installed: apt-get install wrk" in capsys.readouterr().err


def test_the_table_marks_the_best() -> None:
    lines = tune.table(TRIALS, EVEN).splitlines()
    assert lines[2].startswith("| 2 | 1 | 16 | 1 | 5,000 |")
    assert [line for line in lines if line.endswith("best |")] == [lines[3]]


def test_own_images_are_read_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "hidden.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="holds no pictures"):
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
    written = images.write([b"other"], tmp_path)
    assert set(written) == set(images.CONTENT_TYPES)
    for encoding, folder in written.items():
        sent = [path.read_bytes() for path in folder.iterdir()]
        assert sent == [images.body(b"other", encoding)]


def test_only_what_is_between_the_marks_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nafter\n")
    for text in ("new", "newer"):
        page.put(path, "a", text)
        assert path.read_text() == f"before\n<!-- a -->\n\n{text}\n\n<!-- /a -->\nafter\n"
    with pytest.raises(ValueError, match="has no <!-- b -->"):
        page.put(path, "b", "text")


def row(server: str, number: int) -> Row:
    """What is measured of a server in a round, with one client."""
    about = {"server": server, "kind": "engine", "round": number, "images": "small"}
    return {**about, "connections": 1, "rate": 100.0, "p50": 1.0, "p99": 2.0}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[list[Row]]:
    """What is written to the page, which stays as it is."""
    rows: list[list[Row]] = []
    monkeypatch.setattr(load, "wrk", lambda: "wrk")
    monkeypatch.setattr(report, "summary", lambda *_: "tables")
    monkeypatch.setattr(report, "write", lambda found, *_: rows.append(found))
    return rows


@pytest.mark.parametrize("option", ["--quick", "--only=mosec, FastAPI", "--kind=tutorial", None])
def test_only_a_whole_run_is_written(
    option: str | None, written: list[list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [row("mosec", 0), row(Ours.name, 0)]
    monkeypatch.setattr(bench, "measure", lambda *_: (found, {}))
    monkeypatch.setattr("sys.argv", ["bench", *([option] if option else [])])
    assert bench.main() == 0
    assert written == ([] if option else [found])


def test_a_run_without_our_own_server_is_not_written(
    written: list[list[Row]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = {f"{Ours.name} (engine)": ["no worker came up"]}
    monkeypatch.setattr(bench, "measure", lambda *_: ([row("mosec", 0)], failed))
    monkeypatch.setattr("sys.argv", ["bench"])
    assert bench.main() == 1
    assert written == []
    assert "TorchServe (ours) failed in all rounds: nothing is written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("only", "kind"), [("ray serve", None), ("mosec,", None), ("TorchServe (ours)", "tutorial")]
)
def test_servers_that_are_none_are_refused_by_naming_those_that_are(
    only: str, kind: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--only={only}", *([f"--kind={kind}"] if kind else [])]
    monkeypatch.setattr("sys.argv", ["bench", *options])
    assert bench.main() == 1
    assert "but these: " in (said := capsys.readouterr().err)
    assert "mosec, FastAPI, LitServe, BentoML, Ray Serve" in said


def test_servers_are_chosen_by_name_and_kind() -> None:
    assert [(s.name, s.kind) for s in bench.choose("mosec, Ray Serve", "engine")] == [
        ("mosec", "engine"),
        ("Ray Serve", "engine"),
    ]
    assert len(bench.choose(None, None)) == 12


def test_a_server_that_fails_stops_no_other_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steady = (100.0,) * 4
    rates = {"mosec": steady, "LitServe": (), "BentoML": (None, 100.0, None, *steady)}
    chosen = [Scripted(name, each) for name, each in rates.items()]
    monkeypatch.setattr(bench, "OUT", tmp_path)
    monkeypatch.setattr(bench, "_check", lambda *_: None)
    monkeypatch.setattr(bench, "_labels", lambda *_: [])
    monkeypatch.setattr(bench, "_alone", lambda *_: {"images": "small", "rate": 200.0})
    monkeypatch.setattr(load, "run", Asked(chosen))
    monkeypatch.setattr(servers, "REST", 0)
    monkeypatch.setattr(images, "small", lambda: [b"image"])
    plan = bench.Plan(2, 2, tune.WARM_UP, connections=(1,), seconds=1, photos=False, held=())
    found, failed = bench.measure([*chosen], plan)
    told = report.summary(found, failed)
    assert "| mosec | engine | 100 (100–100) |" in told
    assert told.splitlines()[-1].startswith("Failed in rounds, which the tables leave out: ")
    assert "BentoML (engine) in 2 of 4" in told
    assert "LitServe (engine) in 4 of 4" in told
    assert "Failed" not in report.summary(found, {})
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == len(found)


def test_a_ratio_is_one_of_what_was_measured_in_the_same_round() -> None:
    ours = [row(Ours.name, n) | {"rate": rate} for n, rate in enumerate([200.0, 20.0, 300.0])]
    slow_once = [row("mosec", n) | {"rate": rate} for n, rate in enumerate([100.0, 10.0, 100.0])]
    failed_twice = [row("FastAPI", 1) | {"rate": 10.0}]
    alone = {**row("in process", 0), "memory": 1.0, "start": 1.0}
    told = report.summary([*ours, *slow_once, *failed_twice, alone], {})
    assert "| mosec | engine | 100 (10–100) | 2.00× |" in told, "not 200 to 100 by medians alone"
    assert "| FastAPI | engine | 10 (10–10) | 2.00× |" in told


@pytest.fixture
def started() -> Iterator[Callable[..., psutil.Popen]]:
    """Start Pythons that run some lines, until they print something."""
    with ExitStack() as stack:

        def start(code: str, *arguments: str) -> psutil.Popen:
            command = [sys.executable, "-c", code, *arguments]
            process = stack.enter_context(psutil.Popen(command, stdout=subprocess.PIPE))
            stack.callback(end, process, 0.0)
            process.stdout.readline()
            return process

        yield start


def wait_for(true: Callable[[], bool]) -> None:
    """Wait until it is true, as it is a moment after a signal."""
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


POLLS = """
import os, time
os.fork()
print(flush=True)
while True: time.sleep(0.001)
"""


def test_a_server_takes_nothing_while_others_are_measured(
    started: Callable[..., psutil.Popen],
) -> None:
    root = started(POLLS)
    root.stdout.readline()
    (child,) = root.children()
    running = Running("http://polls", [root], 1.0)
    for _ in range(2):
        with running.awake():
            wait_for(lambda: psutil.STATUS_STOPPED not in {root.status(), child.status()})
        wait_for(lambda: {root.status(), child.status()} == {psutil.STATUS_STOPPED})
    running.resume()
    wait_for(lambda: psutil.STATUS_STOPPED not in {root.status(), child.status()})
    end(root, 0.0)
    with running.awake():
        pass  # what has died is told by who asks it


MAPS = """
import mmap, sys, time
with open(sys.argv[1], "rb") as file:
    held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
sum(held[::mmap.PAGESIZE])
print(flush=True)
time.sleep(60)
"""


def test_memory_is_a_servers_own_whatever_others_have_of_the_same_files(
    started: Callable[..., psutil.Popen], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(bytes(100_000_000))
    one = started(MAPS, str(tmp_path / "file"))
    before = Running("", [one], 1.0).memory()
    two = started(MAPS, str(tmp_path / "file"))
    assert one.memory_full_info().pss < 80e6, "half of the file is the other's"
    assert Running("", [one], 1.0).memory() == pytest.approx(before, abs=2)
    assert 100 < before < Running("", [one, two], 1.0).memory() < before + 50, "it counts once"
    end(two, 5.0)
    with pytest.raises(BenchError, match="has died"):
        Running("", [two], 1.0).memory()


@asynccontextmanager
async def answering(
    status: int, *, at_once: int
) -> AsyncIterator[tuple[str, list[bytes], list[Any]]]:
    """Run a server that answers once so many have asked.

    Yields:
        Its URL, what it is asked, and the connections that have ended.
    """
    asked: list[bytes] = []
    closed: list[asyncio.StreamWriter] = []
    enough = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        (length,) = re.findall(rb"Content-Length: (\d+)", head)
        asked.append(head + await reader.readexactly(int(length)))
        if len(asked) >= at_once:
            enough.set()
        await enough.wait()
        if status:
            writer.write(f"HTTP/1.1 {status} Told\r\nContent-Length: 5\r\n\r\nin ".encode())
            await writer.drain()
            writer.write(b"it")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await answer(reader, writer)
            while status:
                await answer(reader, writer)
        writer.close()
        closed.append(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/ask", asked, closed


def test_a_held_rate_waits_for_no_answers_and_times_count_from_when_requests_were_due() -> None:
    async def run() -> None:
        async with answering(200, at_once=20) as (url, asked, _):
            held = await asyncio.to_thread(
                open_loop.hold, url, [b"first", b"second"], "image/png", 100.0, 0.2
            )
        heads, _, bodies = zip(*(request.rpartition(b"\r\n\r\n") for request in asked), strict=True)
        assert sorted(bodies) == [b"first"] * 10 + [b"second"] * 10
        assert all(b"POST /ask " in head and b"Content-Type: image/png" in head for head in heads)
        assert (held.asked, held.answered) == (100.0, 1)
        assert held.p99 > 100, "the first one waited for the last"
        assert held.p50 > 10
        assert 0 <= held.late < held.p50
        assert held.ceiling > 0

    asyncio.run(run())


def test_a_connection_is_used_again_and_closed_in_the_end() -> None:
    async def run() -> None:
        async with answering(200, at_once=1) as (url, asked, closed):
            asker = open_loop.Asker(url, [b"image"])
            await asker.closed(1, 0.1)
            while len(closed) < 1:
                await asyncio.sleep(0.01)
            assert len(asked) == len(asker.outcomes) > 1
            assert len(closed) == 1

    asyncio.run(run())


@pytest.mark.parametrize("status", [503, 0])
def test_a_refusal_or_none_at_all_is_no_answer(status: int) -> None:
    async def run() -> None:
        async with answering(status, at_once=1) as (url, _, _):
            held = await asyncio.to_thread(open_loop.hold, url, [b"image"], "image/png", 50.0, 0.2)
        assert held.answered == 0
        assert held.p50 == held.p99 == math.inf

    asyncio.run(run())


def test_latencies_at_held_rates_stand_in_a_table() -> None:
    rows = [
        {**row(name, number), "images": "held", "asked": rate, "answered": answered}
        | {"p50": rate / 100, "p99": rate / 10, "late": late, "ceiling": 10 * rate}
        for name, answered, late in (("mosec", 1.0, 0.5), ("FastAPI", 0.9, 0.5), ("slow", 1.0, 9.0))
        for number in (0, 1)
        for rate in (200.0, 400.0)
    ]
    assert report._held(rows).splitlines() == [
        "| server | kind | 200/s held, p50 / p99 ms | 400/s held, p50 / p99 ms |",
        "| --- | --- | --- | --- |",
        "| mosec | engine | 2.0 / 20.0 | 4.0 / 40.0 |",
        "| FastAPI | engine | 2.0 / 20.0; 90.0% answered | 4.0 / 40.0; 90.0% answered |",
        "| slow | engine | not held | not held |",
        "",
        "Who asks at a held rate would fill a core with 2,000 to 4,000 requests a second, and "
        "takes half of them up within 0.5 ms, which is part of p50.",
    ]


FAILURE = '{"code": 503, "type": "InternalServerException", "message": "Prediction failed"}'


@pytest.mark.parametrize(
    ("status", "body", "label"),
    [
        (200, '{"car": 0.9, "cat": 0.1}', "car"),
        (200, '[{"cat": 0.1, "car": 0.9}]', "car"),
        (503, '{"car": 0.9, "cat": 0.1}', None),
        (503, FAILURE, None),
        (200, FAILURE, None),
        (502, "<h1>Bad Gateway</h1>", None),
        *[(200, body, None) for body in ("", "[]", "{}", "null", '["car"]')],
    ],
)
def test_only_an_answer_is_taken_for_one(status: int, body: str, label: str | None) -> None:
    answer = requests.Response()
    answer.status_code, answer.url, answer._content = status, "http://peer", body.encode()
    if label:
        assert bench._likeliest(answer) == label
    else:
        with pytest.raises(BenchError, match=f"http://peer answers {status} "):
            bench._likeliest(answer)


def test_what_happens_to_a_peer_is_told_as_its_failure(
    free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mosec = peer("mosec", "engine", PLAIN)
    ended = psutil.Popen([sys.executable, "-c", ""])
    ended.wait()
    gone = Running(f"http://127.0.0.1:{free_port}", [ended], 1.0)
    with pytest.raises(BenchError, match="does not answer"):
        bench._check(mosec, gone, [b"image"], ["cat"])
    with pytest.raises(BenchError, match="has died"):
        gone.memory()

    def refused(command: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(servers, "ENVIRONMENTS", tmp_path)
    monkeypatch.setattr(subprocess, "run", refused)
    with pytest.raises(BenchError, match="can't be installed"):
        PEERS["mosec"].python()


def test_what_happens_to_our_server_is_told_as_its_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: object) -> None:
        raise ServerError("no worker came up")

    monkeypatch.setattr(archive, "build", lambda *_: None)
    monkeypatch.setattr(OurServer, "start", start)
    running = Ours().running(b"image")
    with pytest.raises(BenchError, match="no worker came up"), running:
        pass


def test_ones_own_archive_is_tuned(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "releases.toml").write_text('[cifar10]\ndefault = "1.0"\nversions = ["1.0"]\n')
    monkeypatch.setattr(Place, "releases", tmp_path / "releases.toml")
    monkeypatch.setattr(Place, "model_store", store)
    assert tune.own_archive() is None, "the released net"
    monkeypatch.setattr(archive, "VERSION", "2.0")
    assert tune.own_archive() == store / "cifar10-1.0.mar"
    assert Ours(archive=tune.own_archive())._fill(tmp_path / "store") == ("cifar10", ["1.0"])
    assert (tmp_path / "store" / "cifar10-1.0.mar").is_file()
    (tmp_path / "releases.toml").write_text('[pets]\ndefault = "1.0"\nversions = ["1.0"]\n')
    with pytest.raises(ArchiveError, match="has no archive of pets:"):
        tune.own_archive()


def test_ones_own_weights_are_tuned_under_the_released_name_too(
    trucks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = archive.build(archive.MODEL, archive.VERSION, trucks, tmp_path)
    monkeypatch.setattr(Place, "model_store", tmp_path)
    assert tune.own_archive() == built


def test_on_another_machine_each_core_has_a_worker_and_that_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = json.loads(SETTINGS.read_text())
    monkeypatch.setattr(servers, "cpu_count", lambda: told["cores"])
    assert (servers.settings(), servers.untuned()) == (told["sizes"], "")
    monkeypatch.setattr(servers, "cpu_count", lambda: 64)
    assert {(each["workers"], each["threads"]) for each in servers.settings().values()} == {(64, 1)}
    assert "`python -m bench.tune --peers` finds those" in servers.untuned()


def test_a_processor_of_another_kind_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "BogoMIPS : 50.00\nFeatures : asimd\n")
    monkeypatch.setattr("classifier.serving.java.version", lambda _: "25")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "cores of aarch64;" in report.machine()


def test_a_load_that_nothing_answers_is_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = '{"requests": 0, "rate": 0.0, "p50": 0, "p99": 0, "errors": {"timeout": 0}}'
    done = subprocess.CompletedProcess([], 0, stdout=found, stderr="")
    (tmp_path / "000").write_bytes(b"image")
    monkeypatch.setattr(load, "wrk", lambda: "wrk")
    monkeypatch.setattr(requests, "post", lambda *_, **__: None)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(load.LoadError, match="answers nothing within 3 s"):
        load.run("http://peer", tmp_path, "image/png", 1, 3)


def test_what_a_request_costs_is_told_of_the_cores_that_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @contextmanager
    def running(*_: object) -> Iterator[Running]:
        yield Running("http://ours", [psutil.Process()], 1.0)

    monkeypatch.setattr(costs, "cpu_count", lambda: 8)
    monkeypatch.setattr(costs, "parts", lambda _: {})
    monkeypatch.setattr(images, "write", lambda *_: {"raw": Path()})
    monkeypatch.setattr(load, "run", lambda *_: load.Result(64, 10_000, 1000.0, 1.0, 2.0))
    monkeypatch.setattr(Ours, "running", running)
    told = costs.budget([b"image"])
    assert told.splitlines()[-1] == "| 8 cores for 1,000 answers a second | 8000 |"
