"""Requests at a rate of their own, whether or not earlier ones are answered: as the world asks.

Each has a connection of its own, and no HTTP library parses its answer: what the senders take of
the processor they take from the server that is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

TIMEOUT = 60.0  # seconds


@dataclass(frozen=True)
class Outcome:
    """What came of a request: its status, 0 where there was no answer; and after how many s."""

    status: int
    seconds: float


class Asker:
    """Sends images in turn to a model."""

    def __init__(self, url: str, images: list[bytes]) -> None:
        where = urlsplit(url)
        self._host, self._port = where.hostname, where.port
        self._requests = [_request(where.path, where.netloc, image) for image in images]
        self._next = 0
        self.outcomes: list[Outcome] = []

    async def ask(self) -> None:
        """Send one request and note what comes of it."""
        request = self._requests[self._next % len(self._requests)]
        self._next += 1
        begin, status = time.monotonic(), 0
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(TIMEOUT):
                status = await self._send(request)
        self.outcomes.append(Outcome(status, time.monotonic() - begin))

    async def _send(self, request: bytes) -> int:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(request)
            return int((await reader.readuntil(b"\r\n\r\n")).split()[1])
        finally:
            writer.close()

    async def closed(self, clients: int, seconds: float) -> float:
        """Keep so many requests under way; return the answers of 200 in 1/s."""
        before, begin = len(self.outcomes), time.monotonic()

        async def one() -> None:
            while time.monotonic() < begin + seconds:
                await self.ask()

        await asyncio.gather(*(one() for _ in range(clients)))
        right = sum(outcome.status == 200 for outcome in self.outcomes[before:])
        return right / (time.monotonic() - begin)

    async def open(self, rate: float, seconds: float) -> list[Outcome]:
        """Send `rate` requests a second, and wait for the last answers; return what came."""
        before, begin = len(self.outcomes), time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(int(rate * seconds)):
                await asyncio.sleep(max(0, begin + number / rate - time.monotonic()))
                group.create_task(self.ask())
        return self.outcomes[before:]


def _request(path: str, host: str, image: bytes) -> bytes:
    """Return a request as it goes over the wire."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\n"
        f"Content-Type: application/octet-stream\r\nContent-Length: {len(image)}\r\n\r\n"
    )
    return head.encode() + image
