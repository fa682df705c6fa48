"""A server of its own, beside the one that serves: in one folder, and on free ports."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from . import config
from .place import Place

if TYPE_CHECKING:
    from pathlib import Path


def place(folder: Path, settings: config.Properties) -> Place:
    """Return where such a server lies; its store and its releases are still to be filled.

    Args:
        folder: which holds all of it.
        settings: of its config.properties; those of ports are replaced.
    """
    return Place(
        run=folder / "run",
        model_store=folder / "store",
        releases=folder / "releases.toml",
        config=write(settings | free_ports(), folder),
    )


def write(properties: config.Properties, folder: Path) -> Path:
    """Write a config.properties; return its path."""
    path = folder / "config.properties"
    path.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
    return path


def free_ports() -> config.Properties:
    """Return the settings of a TorchServe that listens on free ports."""
    ports = {key: f"http://127.0.0.1:{free_port()}" for key in config.ADDRESSES}
    return ports | {key: str(free_port()) for key in config.GRPC_PORTS}


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
