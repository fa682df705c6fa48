"""A real TorchServe for a test: free ports, its own folder, its own model store."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
import yaml

from classifier import config, log, management
from classifier.server import Place, Server

if TYPE_CHECKING:
    import psutil

PORTS = (
    "inference_address",
    "management_address",
    "metrics_address",
    "grpc_inference_port",
    "grpc_management_port",
)


class Deployment:
    """What `classifier serve` needs, in a folder of its own.

    Args:
        folder: where everything lies; the server's state too.
        batch_delay: ms that a batch waits for more; a long one makes requests share batches.
    """

    def __init__(self, folder: Path, batch_delay: int | None = None) -> None:
        self.place = Place(
            run=folder / "run",
            model_store=folder / "model_store",
            releases=folder / "releases.toml",
            config=folder / "config.properties",
            model_config=folder / "model-config.yaml",
        )
        self.place.model_store.mkdir(parents=True)
        self.place.config.write_text(_on_free_ports(Path("config.properties").read_text()))
        settings = yaml.safe_load(Path("model/model-config.yaml").read_text())
        if batch_delay is not None:
            settings["maxBatchDelay"] = batch_delay
        self.place.model_config.write_text(yaml.safe_dump(settings))
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
        )

    def start(self) -> None:
        """Start, and wait until it serves what is released."""
        self.server.start()

    def wait_until_ready(self, process: psutil.Process, deadline: float = 120) -> None:
        """Wait until a server that something else started serves what is released."""
        end = time.monotonic() + deadline
        found = ["nothing answers"]
        while found:
            assert process.is_running(), "the server ended"
            assert time.monotonic() < end, found
            with contextlib.suppress(requests.RequestException):
                found = management.differences(self.server.management, self.server.releases)

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

    def log_tail(self, lines: int = 60) -> str:
        """Return the end of the log."""
        return "\n".join(log.read(self.place.logs).splitlines()[-lines:])


def _on_free_ports(text: str) -> str:
    """Put free ports into the text of a configuration."""
    lines = []
    free = iter(_free_ports(len(PORTS)))
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key in PORTS:
            host, _, _ = value.rpartition(":")
            line = f"{key}={host + ':' if host else ''}{next(free)}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
