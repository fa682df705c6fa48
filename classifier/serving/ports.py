"""Free ports, for a server beside the one that serves."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

from . import config


def free(count: int) -> list[int]:
    """Return ports of loopback on which nobody listens.

    The kernel gives none of these to outgoing connections, so they stay free between two starts.
    """
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]
    with contextlib.ExitStack() as taken:
        ports: list[int] = []
        while len(ports) < count:
            port = random.randrange(10_000, max(int(ephemeral), 20_000))  # noqa: S311
            with contextlib.suppress(OSError):
                taken.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
        return ports


def settings() -> config.Properties:
    """Return the settings of a TorchServe that listens on free ports of loopback alone."""
    ports = iter(free(len(config.ADDRESSES) + len(config.GRPC_PORTS)))
    addresses = {key: f"http://127.0.0.1:{next(ports)}" for key in config.ADDRESSES}
    return addresses | {key: str(next(ports)) for key in config.GRPC_PORTS}
