"""Run TorchServe once, so that Java starts it fast and compiles it early from then on.

Java compiles what has run some thousand times, and until then a request costs seven times as much.
Its ahead-of-time cache (JEP 483, 514 and 515) holds the classes as they are once loaded, and which
methods ran often and with what: those are compiled as soon as they run. It holds no data.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ServerError
from . import config, java, ports
from .launch import CONSOLE
from .server import Server

if TYPE_CHECKING:
    from ..place import Place

SECONDS = 5.0
"""For how long each number of connections asks, after the warm-up of every start."""
CONNECTIONS = (1, 8, 64)
"""How many ask at once, one number after the other: each has Java run something else, and what it
has not compiled by the end it will have to compile then."""
WRITTEN = "AOTCache creation is complete"
"""What Java says once the cache is whole: it writes it piece by piece."""


def rehearse(place: Place) -> Path:
    """Make Java's cache by serving what is released, on free ports; return its path.

    Args:
        place: whose releases and archives are served, by its configuration, beside what runs there.

    Raises:
        ServerError: TorchServe does not start, or Java writes no cache.
        ArchiveError: an archive is missing or damaged.
        OSError: the environment's folder can't be written.
    """
    os.environ.pop("JAVA_HOME", None)  # the packaged Java alone has a cache
    java.CACHE.parent.mkdir(exist_ok=True)
    # Beside the cache, so that it can take its place at one stroke.
    with tempfile.TemporaryDirectory(prefix="rehearsal-", dir=java.CACHE.parent) as folder:
        settings = config.read(place.config) | ports.settings()
        # Tokens are written where Java, as it ends, wants no files. Nobody else knows these ports.
        settings |= {"disable_token_authorization": "true"}
        recorded = Path(folder) / "run" / "new.aot"
        settings["vmargs"] = f"{settings.get('vmargs', '')} {java.AOT}CacheOutput=../new.aot"
        own = replace(place, run=recorded.parent, config=config.write(settings, Path(folder)))
        _serve(Server(own))
        printed = (own.logs / CONSOLE).read_text(errors="replace")
        if WRITTEN not in printed:
            raise ServerError(f"Java has written no cache: {' '.join(printed.splitlines()[-3:])}")
        recorded.replace(java.CACHE)
    return java.CACHE


def _serve(server: Server) -> None:
    """Run a server as long as it takes to ask it; Java writes the cache as it ends."""
    with server.lock():
        server.start()
        try:
            for connections in CONNECTIONS:
                server.warm_up(SECONDS, connections)
        finally:
            server.stop()
