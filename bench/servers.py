"""What is compared: our server, TorchServe by its defaults, and what one might pick instead."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import psutil
import requests
import tomlkit
import torch
from joblib import cpu_count

from classifier.archiving import archive, store
from classifier.errors import ClassifierError
from classifier.place import Place
from classifier.process import end, find
from classifier.serving import config, java, ports
from classifier.serving.server import Server as OurServer
from model.weights import read

from . import images, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from typing import IO

START = 120.0  # seconds that a server may take to answer
END = 3.0  # seconds until one that is to end is killed; LitServe and TorchServe by its defaults are
REST = 0.5  # seconds in which the last requests are answered, which nobody waits for any more
ENVIRONMENTS = Path("run/bench/environments")
SETTINGS = Path(__file__).with_name("settings.json")
"""Sizes of servers with our engine, by name: what tuning found best, and on how many cores."""


class BenchError(RuntimeError):
    """A server can't be measured; the message says why."""


@dataclass(frozen=True)
class Running:
    """A server that answers.

    Attributes:
        url: where it is asked.
        roots: its processes; what these have started belongs to it, too.
        seconds: from the start to the first answer.
    """

    url: str
    roots: list[psutil.Process]
    seconds: float

    def memory(self) -> float:
        """Return the memory of all its processes, in MB; what they share counts once.

        Elsewhere that is the sum of PSS, which would share out what other servers have mapped, too.

        Raises:
            BenchError: one of them has died.
        """
        own = 0
        files: dict[str, int] = defaultdict(int)
        try:
            for mapped in (m for process in self._processes() for m in process.memory_maps()):
                if mapped.path.startswith("/"):
                    own += mapped.anonymous
                    files[mapped.path] = max(files[mapped.path], mapped.rss - mapped.anonymous)
                else:
                    own += mapped.pss
        except psutil.NoSuchProcess as error:
            raise BenchError(f"a process of {self.url} has died: {error}") from error
        return (own + sum(files.values())) / 1e6

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let its processes run, and suspend them then: polling, some would take from others.

        What is on its way then gets a while: who awakes later would think that it took a minute.
        """
        self.resume()
        try:
            yield
            time.sleep(REST)
        finally:
            self._each(psutil.Process.suspend)

    def resume(self) -> None:
        """Let its processes run."""
        self._each(psutil.Process.resume)

    def _each(self, change: Callable[[psutil.Process], None]) -> None:
        """Change each of its processes that lives."""
        with suppress(psutil.NoSuchProcess):
            for process in self._processes():
                with suppress(psutil.NoSuchProcess):
                    change(process)

    def _processes(self) -> list[psutil.Process]:
        return [p for root in self.roots for p in (root, *root.children(recursive=True))]


T = TypeVar("T")


def in_turn(these: list[T], number: int) -> list[T]:
    """Return these, each time with another one first."""
    first = number % max(1, len(these))
    return these[first:] + these[:first]


def ask(
    server: Server, running: Running, folders: dict[str, Path], connections: int, seconds: int
) -> load.Result:
    """Ask a server by wrk, as `load.run` does, with the bodies that it takes.

    Args:
        server: what it is.
        running: its processes.
        folders: of bodies, by encoding.
        connections: how many at once.
        seconds: how long.
    """
    kind = images.CONTENT_TYPES[server.encoding]
    return load.run(running.url, folders[server.encoding], kind, connections, seconds)


def start(server: Server, image: bytes, stack: ExitStack) -> Running:
    """Start a server, for as long as the stack holds it, even if it is suspended then."""
    running = stack.enter_context(server.running(image))
    stack.callback(running.resume)
    return running


class Server(Protocol):
    """What can be started and asked."""

    @property
    def name(self) -> str:
        """As its makers write it."""

    @property
    def kind(self) -> str:
        """`tutorial` or `engine`."""

    @property
    def encoding(self) -> str:
        """How a body holds an image."""

    def running(self, image: bytes) -> AbstractContextManager[Running]:
        """Run it, until it answers and as long as it is needed."""


@dataclass(frozen=True)
class Software:
    """How another server is installed, started and asked.

    Attributes:
        packages: pinned; installed into an environment of its own, which sees our torch.
        command: after `python -m`; {port} is filled in.
        encoding: how a body holds an image.
        path: of the endpoint.
        reads: which settings it heeds.
        least_delay: ms; with less it waits as it sees fit.
    """

    packages: tuple[str, ...]
    command: tuple[str, ...]
    encoding: str = "raw"
    path: str = "/predict"
    reads: tuple[str, ...] = ("workers", "threads", "batch", "delay")
    least_delay: int = 0

    def python(self) -> Path:
        """Make the environment where there is none; return its Python.

        Raises:
            BenchError: it can't be made.
        """
        folder = ENVIRONMENTS / re.sub(r"\W+", "-", "-".join(self.packages))
        python, ready = folder / "bin" / "python", folder / ".ready"
        if not ready.exists():
            _install([sys.executable, "-m", "venv", "--clear", str(folder)])
            ours = next(path for path in sys.path if path.endswith("site-packages"))
            site = next((folder / "lib").glob("python*/site-packages"))
            (site / "ours.pth").write_text(ours + "\n")
            _install([str(python), "-m", "pip", "install", "-q", *self.packages])
            ready.touch()
        return python.absolute()


def _install(command: list[str]) -> None:
    """Run a command that installs something, and shows what it has to say."""
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        raise BenchError(f"a peer can't be installed: {error}") from None


@dataclass(frozen=True)
class Peer:
    """Another server.

    Attributes:
        name: as its makers write it.
        kind: `tutorial`, as its own tutorials have it, or `engine`, with our engine and decoding.
        software: how it is run.
        settings: `workers`, `threads` of each, `batch`, and `delay` (ms), as in releases.toml;
            only those that it reads.
    """

    name: str
    kind: str
    software: Software
    settings: dict[str, int]

    @property
    def encoding(self) -> str:
        """How a body holds an image."""
        return self.software.encoding

    @contextmanager
    def running(self, image: bytes) -> Iterator[Running]:
        """Run it, until it answers and as long as it is needed."""
        port = ports.free(1)[0]
        python = str(self.software.python())
        command = [python, "-m", *(c.format(port=port) for c in self.software.command)]
        settings = {f"BENCH_{key.upper()}": str(value) for key, value in self.settings.items()}
        environment = {**os.environ, **settings, "PYTHONPATH": str(Path.cwd())}
        environment |= {"BENCH_KIND": self.kind, "BENCH_PORT": str(port)}
        url = f"http://127.0.0.1:{port}{self.software.path}"
        with _started(command, environment, url, image, self.encoding) as running:
            yield running


@dataclass(frozen=True)
class Ours:
    """This project's server, as `make serve` starts it.

    Attributes:
        settings: as in releases.toml; what is absent fits the machine.
        versions: how many are served; the first one is asked.
        archive: what is served instead of the released net; there is but one version then.
        properties: more of config.properties.
    """

    settings: Mapping[str, int] = field(default_factory=dict)
    versions: int = 1
    archive: Path | None = None
    properties: dict[str, str] = field(default_factory=dict)
    name: str = "TorchServe (ours)"
    kind: str = "engine"
    encoding: str = "raw"

    @contextmanager
    def running(self, image: bytes) -> Iterator[Running]:
        """Run it, until it answers and as long as it is needed."""
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            place = _place(Path(folder), self.properties)
            model, versions = self._fill(place.model_store)
            release = {"default": versions[0], "versions": versions, **self.settings}
            place.releases.write_text(tomlkit.dumps({model: release}))
            server = OurServer(place)
            with server.lock():
                try:
                    yield _start_ours(server, model, image)
                except ClassifierError as error:
                    raise BenchError(f"{self.name}: {error}") from error
                finally:
                    server.stop()

    def _fill(self, model_store: Path) -> tuple[str, list[str]]:
        """Put what is served into a store; return its model and versions."""
        if self.archive is not None:
            model_store.mkdir()
            shutil.copy(self.archive, model_store)
            says = store.manifest(store.read(self.archive))
            return says["modelName"], [says["modelVersion"]]
        versions = [f"{number}.0" for number in range(1, self.versions + 1)]
        for version in versions:
            archive.build(archive.MODEL, version, Path(archive.WEIGHTS), model_store)
        return archive.MODEL, versions


def _start_ours(server: OurServer, model: str, image: bytes) -> Running:
    """Start our server, until it answers."""
    begin = time.monotonic()
    server.start()
    server.client(model).predict(image)
    seconds = time.monotonic() - begin
    roots = [p for p in (server.process(), find(server.state.monitor)) if p is not None]
    if len(roots) < 2:
        raise BenchError("our server or its monitor has died")
    return Running(f"{server.inference}/predictions/{model}", roots, seconds)


@dataclass(frozen=True)
class Naive:
    """TorchServe as a beginner has it: its own image classifier, and all defaults."""

    name: str = "TorchServe (defaults)"
    kind: str = "tutorial"
    encoding: str = "raw"

    @contextmanager
    def running(self, image: bytes) -> Iterator[Running]:
        """Run it, until it answers and as long as it is needed."""
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            folder = Path(name)
            _naive_archive(folder)
            properties = ports.settings()
            served = {"load_models": "naive.mar", "model_store": name}
            configuration = config.write(properties | served | WITHOUT_GPU, folder)
            home, _ = java.home()
            environment = {**os.environ, "TMPDIR": name, "TEMP": name, "JAVA_HOME": str(home)}
            environment |= {"LOG_LOCATION": f"{name}/logs", "METRICS_LOCATION": f"{name}/logs"}
            command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground"]
            command += ["--ncs", "--disable-token-auth", "--ts-config", str(configuration)]
            url = f"{properties['inference_address']}/predictions/naive"
            with _started(command, environment, url, image, self.encoding) as running:
                yield running


@contextmanager
def _started(
    command: list[str], environment: dict[str, str], url: str, image: bytes, encoding: str
) -> Iterator[Running]:
    """Run a command until its server answers and as long as it is needed."""
    with tempfile.TemporaryFile() as log:
        begin = time.monotonic()
        process = psutil.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            headers = {"Content-Type": images.CONTENT_TYPES[encoding]}
            _wait(process, url, images.body(image, encoding), headers, log)
            yield Running(url, [process], time.monotonic() - begin)
        finally:
            end(process, END)


def _naive_archive(folder: Path) -> None:
    """Archive the released weights as TorchServe's documentation does."""
    state = read(Path("model"))
    torch.save(state, folder / "net.pth")
    arguments = {
        "--model-name": "naive",
        "--version": "1.0",
        "--model-file": "model/net.py",
        "--serialized-file": str(folder / "net.pth"),
        "--handler": "bench/peers/naive_handler.py",
        "--extra-files": "model/index_to_name.json",
        "--export-path": str(folder),
    }
    command = [sys.executable, "-m", "model_archiver.model_packaging"]
    for option, value in arguments.items():
        command += [option, value]
    subprocess.run(command, check=True, capture_output=True)


def _place(folder: Path, properties: dict[str, str]) -> Place:
    """Return the files of a server of its own, on free ports."""
    return Place(
        run=folder / "run",
        model_store=folder / "store",
        releases=folder / "releases.toml",
        config=config.write(config.read(Place.config) | ports.settings() | properties, folder),
    )


PLAIN = {"workers": 2, "threads": 1, "batch": 32, "delay": 2}
"""Settings of peers as their tutorials have them, as far as they have any."""
WITHOUT_GPU = {"number_of_gpu": "0"}
"""In config.properties: a processor is compared, which is all that peers are made to use here."""


def settings() -> dict[str, dict[str, int]]:
    """Return the sizes of servers with our engine, by name.

    On another number of cores than they were found on, each server has a worker for each core.
    """
    told = json.loads(SETTINGS.read_text())
    sizes: dict[str, dict[str, int]] = told["sizes"]
    if told["cores"] != cpu_count():
        return {name: each | {"workers": cpu_count(), "threads": 1} for name, each in sizes.items()}
    return sizes


def untuned() -> str:
    """Return what is to be said of sizes that were found on another machine; nothing of others."""
    cores = json.loads(SETTINGS.read_text())["cores"]
    if cores == cpu_count():
        return ""
    return (
        f"The sizes are those found on {cores} cores, but with a worker for each core: "
        "`python -m bench.tune --peers` finds those for this machine, in 35 minutes."
    )


def servers(settings: dict[str, dict[str, int]]) -> list[Server]:
    """Return all that are compared.

    Args:
        settings: of those with our engine, by name: what tuning found best.
    """
    tutorials = [peer(name, "tutorial", PLAIN) for name in PEERS]
    engines = [peer(name, "engine", settings.get(name, PLAIN)) for name in PEERS]
    ours = Ours(settings=settings.get(Ours.name, {}), properties=WITHOUT_GPU)
    return [ours, *engines, Naive(), *tutorials]


PEERS = {
    "mosec": Software(
        ("mosec==0.9.8",),
        ("bench.peers.mosec_server", "--port", "{port}"),
        path="/inference",
        least_delay=1,
    ),
    "FastAPI": Software(
        ("fastapi==0.165.0", "uvicorn[standard]==0.54.0"),
        ("bench.peers.fastapi_server",),
        reads=("workers", "threads"),
    ),
    "LitServe": Software(
        ("litserve==0.2.19",), ("bench.peers.litserve_server",), encoding="base64"
    ),
    "BentoML": Software(
        ("bentoml==1.4.40",),
        ("bentoml", "serve", "bench.peers.bentoml_server:Classifier", "--port", "{port}"),
        encoding="base64 list",
        reads=("workers", "threads", "batch"),
    ),
    "Ray Serve": Software(("ray[serve]==2.60.0",), ("bench.peers.ray_server",)),
}


def peer(name: str, kind: str, settings: dict[str, int]) -> Peer:
    """Return another server, as one of the two kinds."""
    software = PEERS[name]
    return Peer(name, kind, software, {key: settings[key] for key in software.reads})


def _wait(
    process: psutil.Popen, url: str, body: bytes, headers: dict[str, str], log: IO[bytes]
) -> None:
    """Wait until a server answers with 200."""
    deadline = time.monotonic() + START
    last = "no connection"
    while time.monotonic() < deadline and process.poll() is None:
        try:
            answer = requests.post(url, data=body, headers=headers, timeout=10)
            if answer.ok:
                return
            last = f"{answer.status_code} {answer.text[:200]}"
        except requests.RequestException as error:
            last = str(error)
        time.sleep(0.1)
    log.seek(0)
    tail = log.read()[-2000:].decode(errors="replace")
    raise BenchError(f"{url} did not come up: {last}\n{tail}")
