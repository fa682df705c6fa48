"""A real TorchServe for a test: free ports, its own folder, its own model store."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import pytest
import requests

from classifier.place import Place
from classifier.process import wait as wait_until_ended
from classifier.serving import config, log, ports
from classifier.serving.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")
PORTS = (
    "inference_address",
    "management_address",
    "metrics_address",
    "readiness_address",
    "grpc_inference_port",
    "grpc_management_port",
)


class Deployment:
    """What `classifier serve` needs, in a folder of its own.

    Args:
        folder: where everything lies; the server's state too.
        batch_delay: ms that a batch waits for more; a long one makes requests share batches.
    """

    def __init__(self, folder: Path, batch_delay: int = 0) -> None:
        self.place = Place(
            run=folder / "run",
            model_store=folder / "model_store",
            releases=folder / "releases.toml",
            config=folder / "config.properties",
            model_config=folder / "model-config.yaml",
            warm_up=0,
        )
        self.place.model_store.mkdir(parents=True)
        self.place.config.write_text(on_free_ports(Path("config.properties").read_text()))
        shutil.copy("model/model-config.yaml", self.place.model_config)
        self.batch_delay = batch_delay
        self.release("1.0", ["1.0"])

    @property
    def server(self) -> Server:
        """The server as its files say now."""
        return Server(self.place)

    @property
    def inference(self) -> str:
        """URL of the inference API."""
        return self.server.inference

    @property
    def management(self) -> str:
        """URL of the management API."""
        return self.server.management.url

    @property
    def options(self) -> list[str]:
        """Options that point the command `classifier` here."""
        place = self.place
        options = {"run": place.run, "store": place.model_store}
        options |= {"releases": place.releases, "config": place.config}
        return [f"--{name}={path}" for name, path in options.items()]

    def add(self, archive: Path) -> None:
        """Put an archive into the store."""
        shutil.copy(archive, self.place.model_store)

    def release(
        self, default: str, versions: list[str], workers: int = 1, model: str = "cifar10"
    ) -> None:
        """Write releases.toml."""
        self.place.releases.write_text(
            f'[{model}]\ndefault = "{default}"\nversions = {versions}\nworkers = {workers}\n'
            f"delay = {self.batch_delay}\n"
        )

    def configure(self, path: Path) -> None:
        """Take a committed configuration, on this server's ports."""
        self.place.config.write_text(with_ports(path.read_text(), self.ports))

    def start(self) -> None:
        """Start, and wait until it serves what is released."""
        self.server.start()

    @contextlib.contextmanager
    def by_hand(self, configuration: Path) -> Iterator[Path]:
        """Run `torchserve --start` with a committed configuration, on this server's ports.

        Yields the folder in which it runs, which is like the project's.
        """
        folder = self.place.run / "by-hand"
        folder.mkdir(parents=True)
        shutil.copytree("deploy", folder / "deploy")
        (folder / "model_store").symlink_to(self.place.model_store)
        (folder / configuration).write_text(with_ports(configuration.read_text(), self.ports))
        environment = {**os.environ, "TMPDIR": str(self.place.run), "TEMP": str(self.place.run)}
        programs = Path(sys.executable).parent
        environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"

        def torchserve(*arguments: str) -> None:
            command = [str(programs / "torchserve"), *arguments]
            subprocess.run(command, cwd=folder, env=environment, check=True)

        torchserve("--start", "--ts-config", str(configuration))
        process = psutil.Process(int((self.place.run / ".model_server.pid").read_text()))
        family = [process]
        try:
            yield folder
            family += process.children(recursive=True)
        finally:
            torchserve("--stop")
            assert not wait_until_ended(family, 60), "torchserve --stop left something"

    def wait_for_answer(self, image: bytes, **arguments: Any) -> requests.Response:
        """Ask until there is an answer of 200: for servers that `start` did not start."""
        end = time.monotonic() + 120
        answered = None
        while time.monotonic() < end:
            with contextlib.suppress(requests.ConnectionError):
                answered = self.predict(image, **arguments)
                if answered.ok:
                    return answered
            time.sleep(0.2)
        pytest.fail(f"no answer of 200: {answered and answered.text}")

    def stop(self) -> None:
        """Stop it, where it runs."""
        self.server.stop()

    def predict(self, image: bytes, version: str = "", **arguments: Any) -> requests.Response:
        """Ask for a prediction, as curl -T does."""
        path = f"/predictions/cifar10/{version}".rstrip("/")
        return requests.put(self.inference + path, data=image, timeout=60, **arguments)

    def describe(self, version: str = "1.0") -> dict[str, Any]:
        """Return what the handler says of itself."""
        url = f"{self.management}/models/cifar10/{version}?customized=true"
        described: dict[str, Any] = requests.get(url, timeout=60).json()[0]
        return described

    def port(self, key: str) -> str:
        """Return a setting of config.properties."""
        return config.read(self.place.config)[key]

    @property
    def ports(self) -> dict[str, int]:
        """The ports of config.properties, by key."""
        return {key: int(self.port(key).rpartition(":")[2]) for key in PORTS}

    def log_tail(self, lines: int = 60) -> str:
        """Return the end of the log."""
        return "\n".join(log.read(self.place.logs).splitlines()[-lines:])


def together(ask: Callable[[T], requests.Response], about: Sequence[T]) -> list[requests.Response]:
    """Ask about each at the same time; return the answers in order."""
    start = threading.Barrier(len(about))

    def ask_with_others(one: T) -> requests.Response:
        start.wait(60)
        return ask(one)

    with ThreadPoolExecutor(len(about)) as pool:
        return list(pool.map(ask_with_others, about))


def on_free_ports(text: str) -> str:
    """Put free ports into the text of a configuration; the hosts stay as they are."""
    return with_ports(text, dict(zip(PORTS, ports.free(len(PORTS)), strict=True)))


def with_ports(text: str, ports: dict[str, int]) -> str:
    """Put ports into the text of a configuration, by key; the hosts stay as they are."""
    for key, port in ports.items():
        text, count = re.subn(rf"^({key}=.*?)\d+$", rf"\g<1>{port}", text, flags=re.MULTILINE)
        assert count == 1, key
    return text
