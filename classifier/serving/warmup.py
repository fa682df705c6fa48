"""Ask a new server until it is fast: Java compiles what runs often, and only what has run."""

from __future__ import annotations

import http.client
import io
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from PIL import Image

from ..errors import ServerError

CONNECTIONS = 32
HEADERS = {"Content-Type": "application/octet-stream", "X-Warm-Up": "1"}
"""The second keeps these requests out of the metric `Answers`, which counts labels."""


def warm_up(
    url: str,
    seconds: float,
    headers: dict[str, str] | None = None,
    connections: int = CONNECTIONS,
) -> int:
    """Send an image again and again, over many connections; return how many were answered.

    Args:
        url: of a model, such as http://127.0.0.1:8080/predictions/cifar10.
        seconds: how long.
        headers: to send besides.
        connections: how many ask at once.

    Raises:
        ServerError: the server does not answer.
    """
    image = blank()
    sent = HEADERS | (headers or {})
    deadline = time.monotonic() + seconds

    def ask(_: int) -> int:
        where = urlsplit(url)
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
        answered = 0
        while time.monotonic() < deadline:
            connection.request("POST", where.path, image, sent)
            answered += connection.getresponse().read() != b""
        connection.close()
        return answered

    try:
        with ThreadPoolExecutor(connections) as pool:
            return sum(pool.map(ask, range(connections)))
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(f"{url} gives no answer: {error!r}") from None


def blank() -> bytes:
    """Return the file of a small image, for questions whose answer nobody needs."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "PNG")
    return file.getvalue()
