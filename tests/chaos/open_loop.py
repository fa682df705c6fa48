"""Requests at a rate of their own, whether or not earlier ones are answered: as the world asks."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import httpx

TIMEOUT = 60.0  # seconds


@dataclass(frozen=True)
class Outcome:
    """What came of a request: its status, 0 where there was no answer; and after how many s."""

    status: int
    seconds: float


class Asker:
    """Sends images in turn to a model."""

    def __init__(self, url: str, images: list[bytes]) -> None:
        self._url, self._images, self._next = url, images, 0
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.AsyncClient(limits=limits, timeout=TIMEOUT, trust_env=False)
        self.outcomes: list[Outcome] = []

    async def ask(self) -> None:
        """Send one request and note what comes of it."""
        image = self._images[self._next % len(self._images)]
        self._next += 1
        begin = time.monotonic()
        try:
            status = (await self._http.put(self._url, content=image)).status_code
        except httpx.TransportError:
            status = 0
        self.outcomes.append(Outcome(status, time.monotonic() - begin))

    async def closed(self, clients: int, seconds: float) -> float:
        """Keep so many requests under way; return the answers of 200 in 1/s."""
        before, end = len(self.outcomes), time.monotonic() + seconds

        async def one() -> None:
            while time.monotonic() < end:
                await self.ask()

        begin = time.monotonic()
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

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()
