"""Requests at a rate of their own, whether or not earlier ones are answered: as the world asks.

They come by chance, as those of people who know nothing of each other (a Poisson process), and by
the same chance for every server. Nothing but what is needed is done for each, for it takes of the
processor what the server that is measured can't have then.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import numpy as np
from httptools import HttpParserError, HttpResponseParser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

TIMEOUT = 60.0  # seconds
HELD_CONNECTIONS = 64
"""Over which a held rate is sent. With a new one for each request that has to wait, who asks would
take more of the processor the slower a server is."""
MANY = 10_000
"""Connections of a load that nothing holds back."""
SEED = 1


@dataclass(frozen=True)
class Outcome:
    """What came of a request.

    Attributes:
        status: of the answer, 0 where there was none.
        seconds: from when it was due to the answer.
        late: seconds from when it was due until it was taken up.
    """

    status: int
    seconds: float
    late: float


@dataclass(frozen=True)
class Held:
    """What came of a rate that was held.

    Attributes:
        asked: requests in 1/s.
        answered: the share of them that got 200, in [0, 1].
        p50, p99: milliseconds from when a request was due to its answer of 200, by percentile;
            infinite where there was none.
        late: milliseconds after it was due that half of the requests were taken up at most: a part
            of p50 that is not the server's.
        ceiling: requests in 1/s for which who asks would need a whole core.
    """

    asked: float
    answered: float
    p50: float
    p99: float
    late: float
    ceiling: float


def hold(url: str, bodies: Sequence[bytes], content_type: str, rate: float, seconds: float) -> Held:
    """Ask a server at a rate for so many seconds, and wait for the last answers.

    Args:
        url: of the endpoint.
        bodies: of requests, sent in turn.
        content_type: of all of them.
        rate: requests in 1/s.
        seconds: how long.
    """
    asker = Asker(url, bodies, content_type)
    begin = time.process_time()
    outcomes = asyncio.run(asker.open(rate, seconds, HELD_CONNECTIONS))
    taken = time.process_time() - begin
    right = [outcome.seconds for outcome in outcomes if outcome.status == 200]
    p50, p99 = np.percentile(right, [50, 99]) if right else (math.inf, math.inf)
    late = median(outcome.late for outcome in outcomes)
    return Held(
        asked=rate,
        answered=len(right) / len(outcomes),
        p50=1e3 * float(p50),
        p99=1e3 * float(p99),
        late=1e3 * late,
        ceiling=len(outcomes) / taken,
    )


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
        late = time.monotonic() - due
        request = self._requests[self._next % len(self._requests)]
        self._next += 1
        try:
            async with asyncio.timeout(TIMEOUT):
                status = await self._send(request)
        except (OSError, TimeoutError):
            status = 0
        self.outcomes.append(Outcome(status, time.monotonic() - due, late))

    async def _send(self, request: bytes) -> int:
        async with self._free:
            connection = await self._connection()
            try:
                status = await connection.ask(request)
            except asyncio.CancelledError:  # too late an answer would be taken for the next one's
                connection.close()
                raise
            if connection.kept:
                self._idle.append(connection)
            return status

    async def _connection(self) -> _Connection:
        """Return the one that was used last, so that the server still holds it; else a new one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.kept:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._host, self._port)
        return connection

    async def closed(self, clients: int, seconds: float) -> float:
        """Keep so many requests under way; return the answers of 200 in 1/s."""
        before, begin = len(self.outcomes), time.monotonic()

        async def one() -> None:
            while (now := time.monotonic()) < begin + seconds:
                await self.ask(now)

        async with self._connections(clients):
            await asyncio.gather(*(one() for _ in range(clients)))
        right = sum(outcome.status == 200 for outcome in self.outcomes[before:])
        return right / (time.monotonic() - begin)

    async def open(self, rate: float, seconds: float, connections: int = MANY) -> list[Outcome]:
        """Send `rate` requests a second, and wait for the last answers; return what came.

        Args:
            rate: the mean, in 1/s.
            seconds: how long.
            connections: how many requests are sent at once; more wait here, which counts.
        """
        gaps = np.random.default_rng(SEED).exponential(1 / rate, int(rate * seconds))
        before, due = len(self.outcomes), time.monotonic()
        async with self._connections(connections), asyncio.TaskGroup() as group:
            for gap in gaps.tolist():
                due += gap
                await asyncio.sleep(max(0, due - time.monotonic()))
                group.create_task(self.ask(due))
        return self.outcomes[before:]

    @asynccontextmanager
    async def _connections(self, most: int) -> AsyncIterator[None]:
        """Use so many connections at most meanwhile."""
        self._free = asyncio.Semaphore(most)
        try:
            yield
        finally:
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
