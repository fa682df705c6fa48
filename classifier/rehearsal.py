"""Run TorchServe once, so that Java starts it fast and compiles it early from then on.

Java compiles what has run some thousand times, and until then a request costs seven times as much.
Its ahead-of-time cache (JEP 483, 514 and 515) holds the classes as they are once loaded, and which
methods ran often and with what: those are compiled as soon as they run. It holds no data.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import tomlkit

from . import archive, config, java, scratch
from .errors import ServerError
from .launch import CONSOLE
from .place import Place
from .server import Server
from .warmup import warm_up

SECONDS = 5.0
"""For how long each number of connections asks, after the warm-up of every start."""
CONNECTIONS = (1, 8, 64)
"""How many ask at once, one number after the other: each has Java run something else, and what it
has not compiled by the end it will have to compile then."""
RECORDED = "torchserve.aot"


def rehearse(configuration: Path = Place.config) -> Path:
    """Make Java's cache, with the released weights, on free ports; return its path.

    Args:
        configuration: config.properties, as the server will have it.

    Raises:
        ServerError: TorchServe does not start, or Java writes no cache.
        OSError: the environment's folder can't be written.
    """
    os.environ.pop("JAVA_HOME", None)  # the packaged Java alone has a cache
    # Beside the cache, so that it can take its place at one stroke.
    with tempfile.TemporaryDirectory(prefix="rehearsal-", dir=java.CACHE.parent) as folder:
        settings = config.read(configuration)
        # Tokens are written where Java, as it ends, wants no files. Nobody else knows these ports.
        settings |= {"disable_token_authorization": "true"}
        settings["vmargs"] = f"{settings.get('vmargs', '')} -XX:AOTCacheOutput=../{RECORDED}"
        place = scratch.place(Path(folder), settings)
        archive.build(archive.MODEL, archive.VERSION, Path(archive.WEIGHTS), place.model_store)
        release = {"default": archive.VERSION, "versions": [archive.VERSION]}
        place.releases.write_text(tomlkit.dumps({archive.MODEL: release}))
        server = Server(place)
        with server.lock():
            server.start()
            for connections in CONNECTIONS:
                url = f"{server.inference}/predictions/{archive.MODEL}"
                warm_up(url, SECONDS, connections=connections)
            server.stop()  # Java writes the cache as it ends
        recorded = place.run / RECORDED
        if not recorded.exists():
            said = (place.logs / CONSOLE).read_text(errors="replace").splitlines()
            raise ServerError(f"Java has written no cache: {' '.join(said[-3:])}")
        recorded.replace(java.CACHE)
    return java.CACHE
