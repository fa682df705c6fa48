"""TorchServe's configuration: config.properties, and what is generated from it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import yaml

from . import store
from .errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from .releases import Release

ADDRESSES = {
    "inference_address": "http://127.0.0.1:8080",
    "management_address": "http://127.0.0.1:8081",
    "metrics_address": "http://127.0.0.1:8082",
}
GRPC_PORTS = {"grpc_inference_port": "7070", "grpc_management_port": "7071"}
"""TorchServe's own defaults, where config.properties is silent."""
LOADING = ("model_snapshot", "load_models", "models")
"""Settings that say what is served: releases.toml takes their place."""

MOST_WORKERS = 8
"""A worker takes some 400 MB, so a machine of many cores gets no more unless they are asked for."""

Properties = dict[str, str]


def read(path: Path) -> Properties:
    """Read a .properties file of `key=value` lines.

    Raises:
        ServerError: the file is missing, or a line goes on in the next.
    """
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except FileNotFoundError:
        raise ServerError(f"{path} is missing: run this in the project's folder") from None
    settings = [line for line in lines if line and not line.startswith("#")]
    going_on = [line for line in settings if line.endswith("\\")]
    if going_on:
        raise ServerError(f"{path}: put the setting {going_on[0]!r} on one line")
    pairs = [line.partition("=") for line in settings]
    return {key.strip(): value.strip() for key, _, value in pairs}


def address(properties: Properties, kind: str) -> str:
    """Return the URL of `inference`, `management` or `metrics`."""
    key = f"{kind}_address"
    return properties.get(key, ADDRESSES[key])


def workers(release: Release) -> int:
    """Return how many workers each version gets; if not said, as many as cores, within reason."""
    return release.workers or min(MOST_WORKERS, len(os.sched_getaffinity(0)))


def generate(
    base: Properties, releases: Iterable[Release], model_store: Path, model_config: Path
) -> str:
    """Return the text of a configuration that serves the releases, each with its default.

    Args:
        base: what config.properties says.
        releases: what releases.toml says.
        model_store: the folder of the archives.
        model_config: model-config.yaml; its batch size and delay hold for each version.
    """
    settings = yaml.safe_load(model_config.read_text())
    models = {
        release.model: {
            version: _version(release, version, settings) for version in release.versions
        }
        for release in releases
    }
    count = sum(len(versions) for versions in models.values())
    snapshot = {"name": "releases", "modelCount": count, "models": models}
    kept = {key: value for key, value in base.items() if key not in LOADING}
    kept |= {"model_store": str(model_store), "model_snapshot": json.dumps(snapshot)}
    head = "# Generated from config.properties and releases.toml at each start.\n"
    return head + "".join(f"{key}={value}\n" for key, value in kept.items())


def _version(release: Release, version: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "defaultVersion": version == release.default,
        "marName": store.file_name(release.model, version),
        "minWorkers": workers(release),
        "maxWorkers": workers(release),
        "batchSize": settings["batchSize"],
        "maxBatchDelay": settings["maxBatchDelay"],
        "responseTimeout": settings["responseTimeout"],
    }
