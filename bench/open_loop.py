"""Requests at a rate of their own, whether or not earlier ones are answered: as the world asks.

Nothing but what is needed is done for each: what the senders take of the processor they take from
the server that is measured.
"""

from __future__ import annotations

import asyncio
import math
import resource
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import numpy as np
from httptools import HttpParserError, HttpResponseParser

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMEOUT = 60.0  # seconds


@dataclass(frozen=True)
class Outcome:
    """What came of a request: its status, 0 where there was no answer; and after how many s."""

    status: int
    seconds: float


@dataclass(frozen=True)
class Held:
    """What came of a rate that was held.

    Attributes:
        asked: requests in 1/s.
        answered: the share of them that got 200, in [0, 1].
        p50, p99: milliseconds from when a request was due to its answer of 200, by percentile;
            infinite where there was none.
        ceiling: requests in 1/s for which the senders would need a whole core.
    """

    asked: float
    answered: float
    p50: float
    p99: float
    ceiling: float

    def to_json(self) -> dict[str, float]:
        """Return it as JSON values."""
        return asdict(self)


def hold(url: str, bodies: Sequence[bytes], content_type: str, rate: float, seconds: float) -> Held:
    """Ask a server at a rate for so many seconds, and wait for the last answers.

    Args:
        url: of the endpoint.
        bodies: of requests, sent in turn.
        content_type: of all of them.
        rate: requests in 1/s.
        seconds: how long.
    """
    _allow_many_connections()
    begin = time.process_time()
    outcomes = asyncio.run(Asker(url, bodies, content_type).open(rate, seconds))
    taken = time.process_time() - begin
    right = [outcome.seconds for outcome in outcomes if outcome.status == 200]
    p50, p99 = 1e3 * np.percentile(right, [50, 99]) if right else (math.inf, math.inf)
    return Held(rate, len(right) / len(outcomes), float(p50), float(p99), len(outcomes) / taken)


def _allow_many_connections() -> None:
    """Let this process hold as many as it may: a server that falls behind leaves many waiting."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Connection(asyncio.Protocol):
    """A connection that is asked one thing at a time."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[int] | None = None
        self._parser = HttpResponseParser(self)
        self.kept = True

    async def ask(self, request: bytes) -> int:
        """Send a request; return the status of its answer, 0 if there is none."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self._transport.close()

    def _answered(self, status: int) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except HttpParserError:
            self._transport.close()

    def on_message_complete(self) -> None:
        self.kept = self.kept and self._parser.should_keep_alive()
        self._answered(self._parser.get_status_code())

    def connection_lost(self, _: Exception | None) -> None:
        self.kept = False
        self._answered(0)


class Asker:
    """Sends bodies in turn to an endpoint, over as many connections as are needed at once."""

    def __init__(
        self, url: str, bodies: Sequence[bytes], content_type: str = "application/octet-stream"
    ) -> None:
        where = urlsplit(url)
        self._host, self._port = where.hostname or "", where.port or 80
        self._requests = [_request(where.path, where.netloc, body, content_type) for body in bodies]
        self._next = 0
        self._idle: list[_Connection] = []
        self.outcomes: list[Outcome] = []

    async def ask(self, due: float) -> None:
        """Send a request that was due at a time of `time.monotonic()`; note what comes of it."""
        request = self._requests[self._next % len(self._requests)]
        self._next += 1
        try:
            async with asyncio.timeout(TIMEOUT):
                status = await self._send(request)
        except (OSError, TimeoutError):
            status = 0
        self.outcomes.append(Outcome(status, time.monotonic() - due))

    async def _send(self, request: bytes) -> int:
        while self._idle:
            connection = self._idle.pop()  # the last one used, so that the server still holds it
            if connection.kept:
                break
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(_Connection, self._host, self._port)
        try:
            status = await connection.ask(request)
        except asyncio.CancelledError:  # too late an answer would be taken for the next one's
            connection.close()
            raise
        if connection.kept:
            self._idle.append(connection)
        return status

    async def closed(self, clients: int, seconds: float) -> float:
        """Keep so many requests under way; return the answers of 200 in 1/s."""
        before, begin = len(self.outcomes), time.monotonic()

        async def one() -> None:
            while (now := time.monotonic()) < begin + seconds:
                await self.ask(now)

        await asyncio.gather(*(one() for _ in range(clients)))
        self._hang_up()
        right = sum(outcome.status == 200 for outcome in self.outcomes[before:])
        return right / (time.monotonic() - begin)

    async def open(self, rate: float, seconds: float) -> list[Outcome]:
        """Send `rate` requests a second, and wait for the last answers; return what came."""
        before, begin = len(self.outcomes), time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(int(rate * seconds)):
                due = begin + number / rate
                await asyncio.sleep(max(0, due - time.monotonic()))
                group.create_task(self.ask(due))
        self._hang_up()
        return self.outcomes[before:]

    def _hang_up(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()


def _request(path: str, host: str, body: bytes, content_type: str) -> bytes:
    """Return a request as it goes over the wire."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
