"""TorchServe's configuration: config.properties, and what is generated from it."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml
from joblib import cpu_count

from ..archiving import store
from ..errors import ServerError
from . import java

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .releases import Release

ADDRESSES = {
    "inference_address": "http://127.0.0.1:8080",
    "management_address": "http://127.0.0.1:8081",
    "metrics_address": "http://127.0.0.1:8082",
    "readiness_address": "http://127.0.0.1:8083",
}
"""TorchServe's own defaults, where config.properties is silent; and readiness_address, which is
the monitor's."""
GRPC_PORTS = {"grpc_inference_port": "7070", "grpc_management_port": "7071"}
"""TorchServe's own defaults."""
_SETTING = re.compile(r"[^\s:=]+\s*=")
"""How a line begins. Java takes a colon or a space, too; one spelling is enough here."""
EVERYWHERE = "0.0.0.0"  # noqa: S104
"""The host that stands for every interface: one can listen on it, but not ask it."""
LOADING = ("model_snapshot", "load_models", "models")
"""Settings that say what is served: releases.toml takes their place."""

FILES = ("metrics_config", "vmargs")
"""Settings that name files, as they are seen from the project's folder; TorchServe is started in
another one. vmargs names the file of log4j. They are named from there, not from the root:
TorchServe splits vmargs at spaces, and Java reads letters in the path of a folder as Latin-1. What
`java.options` adds is named from the folder of TorchServe already."""

NUMBERS = ("batchSize", "responseTimeout")
"""Settings of model-config.yaml that are told to TorchServe for each version."""

MOST_WORKERS = 8
"""A worker takes 105 MB, 570 once it has explained something, so a machine of many cores gets
no more unless they are asked for."""
WORKERS_PER_GPU = 2
"""One decodes images while the GPU runs what the other has decoded."""
THREADS = "CLASSIFIER_THREADS"
"""The environment variable that tells workers their threads: JSON, a number by model."""
KEEP = "CLASSIFIER_KEEP"
"""The environment variable that tells workers what to keep: JSON, folder and share by model."""

HEAD = "# Generated from config.properties and releases.toml at each start.\n"
"""The first line of what is generated: by it a file is known that may be overwritten."""

Properties = dict[str, str]


def read(path: Path) -> Properties:
    """Read a .properties file of `key=value` lines.

    Raises:
        ServerError: the file is missing or not UTF-8, a line goes on in the next, or an address or
            a port is none, or is https.
    """
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except FileNotFoundError:
        raise ServerError(f"{path} is missing: run this in the project's folder") from None
    except UnicodeDecodeError as error:
        raise ServerError(f"{path} is not UTF-8: {error}") from None
    settings = [line for line in lines if line and not line.startswith(("#", "!"))]
    going_on = [line for line in settings if line.endswith("\\")]
    if going_on:
        raise ServerError(f"{path}: put the setting {going_on[0]!r} on one line")
    pairs = [line.partition("=") for line in settings]
    others = [line for line in settings if not _SETTING.match(line)]
    if others:
        raise ServerError(f"{path}: write the setting {others[0]!r} as key=value")
    found = {key.strip(): value.strip() for key, _, value in pairs}
    for key, example in ADDRESSES.items():
        value = found.get(key, example)
        if value.startswith("https:"):
            raise ServerError(f"{path}: {key}: TLS is a proxy's: write http:// (see deploy/nginx/)")
        if not _is_address(value):
            raise ServerError(
                f"{path}: {key}={value} is no address: write http://, a name or an IPv4 address, "
                f"and a port, as in {example}"
            )
    for key, example in GRPC_PORTS.items():
        if not _is_address(f"http://127.0.0.1:{found.get(key, example)}"):
            raise ServerError(
                f"{path}: {key}={found[key]} is no port: write a number such as {example}"
            )
    return found


def write(properties: Properties, folder: Path) -> Path:
    """Write a config.properties into a folder; return its path."""
    path = folder / "config.properties"
    path.write_text(_text(properties))
    return path


def _text(properties: Properties) -> str:
    return "".join(f"{key}={value}\n" for key, value in properties.items())


def _is_address(value: str) -> bool:
    try:
        url = urlsplit(value)
        host = url.hostname or ":"
        is_all = value == f"http://{url.netloc}" and "@" not in url.netloc
        return is_all and bool(url.port) and ":" not in host
    except ValueError:  # as of a port that is no number
        return False


def address(properties: Properties, kind: str) -> str:
    """Return the URL at which to ask `inference`, `management`, `metrics` or `readiness`.

    Where it listens on every interface, that is loopback.
    """
    url = listening(properties, kind)
    if urlsplit(url).hostname != EVERYWHERE:
        return url
    return url.replace(EVERYWHERE, "127.0.0.1", 1)


def listening(properties: Properties, kind: str) -> str:
    """Return the URL on which `inference`, `management`, `metrics` or `readiness` listens."""
    key = f"{kind}_address"
    return properties.get(key, ADDRESSES[key])


@dataclass(frozen=True)
class Sizes:
    """How a model is served on a machine.

    Attributes:
        workers: of each version.
        threads: of each worker, on a CPU.
        batch: requests that a worker answers at once, at most.
        delay: ms that a batch waits for more requests than have come.
    """

    workers: int
    threads: int
    batch: int
    delay: int


def sizes(release: Release, model_config: Path) -> Sizes:
    """Return what releases.toml says, and else what fits the machine.

    Workers and threads together are as many as cores, so that none is idle or fought over; of
    the cores, those count that this process, or its container, may use. The batch is
    model-config.yaml's.
    """
    settings = _settings(model_config)
    return Sizes(
        workers=workers(release),
        threads=release.threads or max(1, cpu_count() // workers(release)),
        batch=release.batch or settings["batchSize"],
        delay=release.delay,
    )


def _settings(model_config: Path) -> dict[str, int]:
    """Return the numbers in model-config.yaml that are TorchServe's.

    Raises:
        ServerError: one is missing, or it is no YAML.
    """
    try:
        said = yaml.safe_load(model_config.read_text())
        return {key: int(said[key]) for key in NUMBERS}
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        wanted = ", ".join(NUMBERS)
        raise ServerError(
            f"{model_config} must give a number to each of {wanted}: {error}"
        ) from None


def workers(release: Release) -> int:
    """Return how many workers each version gets: `sizes` without what is read from files."""
    if release.workers is not None:
        return release.workers
    found = gpus()
    return WORKERS_PER_GPU * found if found else min(MOST_WORKERS, cpu_count())


@functools.cache  # a server that starts is compared with what it should be five times a second
def gpus() -> int:
    """Return how many GPUs TorchServe will find: those of CUDA_VISIBLE_DEVICES, or nvidia-smi's."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return len(visible.split(","))
    if not shutil.which("nvidia-smi"):
        return 0
    command = ["nvidia-smi", "--list-gpus"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def threads(releases: Iterable[Release], model_config: Path) -> dict[str, str]:
    """Return the environment that tells workers their threads."""
    numbers = {release.model: sizes(release, model_config).threads for release in releases}
    return {THREADS: json.dumps(numbers)}


def keeping(releases: Iterable[Release], traffic: Path) -> dict[str, str]:
    """Return the environment that tells workers which requests to keep, in folders of `traffic`.

    It says so, too, where none are kept: else what the caller's environment says would hold.
    """
    told = {
        release.model: {"folder": str(traffic.resolve() / release.model), "share": release.keep}
        for release in releases
        if release.keep is not None
    }
    return {KEEP: json.dumps(told)}


def generate(
    base: Properties,
    releases: Iterable[Release],
    model_store: Path,
    model_config: Path,
    run: Path,
) -> str:
    """Return the text of a configuration that serves the releases, each with its default.

    Args:
        base: what config.properties says.
        releases: what releases.toml says.
        model_store: the folder of the archives.
        model_config: model-config.yaml.
        run: the folder in which TorchServe will run.
    """
    timeout = _settings(model_config)["responseTimeout"]
    models = {
        release.model: _versions(release, sizes(release, model_config), timeout)
        for release in releases
    }
    count = sum(len(versions) for versions in models.values())
    snapshot = {"name": "releases", "modelCount": count, "models": models}
    kept = {key: value for key, value in base.items() if key not in LOADING}
    kept |= {"model_store": str(model_store), "model_snapshot": json.dumps(snapshot)}
    kept |= {key: _as_seen_from(run, kept[key]) for key in FILES if key in kept}
    return HEAD + _text(kept)


def _as_seen_from(folder: Path, value: str) -> str:
    """Name the files of a setting from a folder: the whole value, or what follows a -Dname=."""

    def one(word: str) -> str:
        name, equals, path = word.rpartition("=")
        if word.startswith(java.AOT) or not Path(path).is_file():
            return word
        return f"{name}{equals}{os.path.relpath(Path(path).resolve(), folder.resolve())}"

    return " ".join(map(one, value.split(" ")))


def _versions(release: Release, sizes: Sizes, timeout: int) -> dict[str, Any]:
    return {
        version: {
            "defaultVersion": version == release.default,
            "marName": store.file_name(release.model, version),
            "minWorkers": sizes.workers,
            "maxWorkers": sizes.workers,
            "batchSize": sizes.batch,
            "maxBatchDelay": sizes.delay,
            "responseTimeout": timeout,
        }
        for version in release.versions
    }
