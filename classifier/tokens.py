"""The tokens that a TorchServe with token authorization wants.

It writes them to key_file.json in its folder, anew at each start: one for the inference API, one
for the management API, both good for an hour (`token_expiration_min`), and one that gives new ones.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import httpx

from .errors import ServerError, error_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from pathlib import Path

LEAST_LEFT = 30.0
"""Seconds that a token must be good for yet; one that is not is renewed."""


class Kind(StrEnum):
    """Which API a token is for."""

    INFERENCE = "inference"
    MANAGEMENT = "management"


PATIENCE = 2.0
"""Seconds that the file is waited for: TorchServe does not write it at one stroke."""


class TokenAuth(httpx.Auth):
    """Lets httpx send a token, and another one, once, where the server refuses it.

    Args:
        token: returns the current token. It is kept until the server refuses it.
    """

    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token
        self._kept: str | None = None
        self._lock = threading.Lock()

    requires_response_body = True

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the token, as httpx wants it told."""
        token = self._current()
        request.headers["Authorization"] = f"Bearer {token}"
        answer = yield request
        if is_refused(answer) and (other := self._current(refused=token)) != token:
            request.headers["Authorization"] = f"Bearer {other}"
            yield request

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Do the same where nothing may wait: tokens come from a file or from the server."""
        flow = self.auth_flow(request)
        answer = yield await asyncio.to_thread(next, flow)
        await answer.aread()
        if (again := await asyncio.to_thread(_go_on, flow, answer)) is not None:
            yield again

    def _current(self, refused: str | None = None) -> str:
        """Return the token that is kept, or what is one now if that was refused."""
        with self._lock:
            if self._kept is None or self._kept == refused:
                self._kept = self._token()
            return self._kept


def _go_on(
    flow: Generator[httpx.Request, httpx.Response, None], answer: httpx.Response
) -> httpx.Request | None:
    try:
        return flow.send(answer)
    except StopIteration:
        return None


def is_refused(answer: httpx.Response) -> bool:
    """Tell whether a server, or a proxy before it, refuses the request's token.

    TorchServe's management API says so in words only, with status 400.
    """
    return answer.is_error and (
        answer.status_code in (401, 403) or error_of(answer)[0] == "InvalidKeyException"
    )


def source(key_file: Path, kind: Kind, management: str | None = None) -> Callable[[], str]:
    """Return a function that gives the current token, for `Client` and others.

    Args:
        key_file: TorchServe's key_file.json.
        kind: which API it is for.
        management: URL of the management API. With it a token that expires is renewed; what
            others hold is then good no more.
    """

    def current() -> str:
        keys = _read(key_file)
        if management is not None and _left(keys[kind]) < LEAST_LEFT:
            _renew(management, kind, keys["API"]["key"])
            keys = _read(key_file, other_than=keys[kind]["key"], kind=kind)
        return str(keys[kind]["key"])

    return current


def _renew(management: str, kind: Kind, key: str) -> None:
    """Let TorchServe write a new token."""
    answer = httpx.get(
        f"{management}/token",
        params={"type": kind},
        headers={"Authorization": f"Bearer {key}"},
        trust_env=False,
    )
    if answer.is_error:
        raise ServerError(f"{management} gives no new token: {answer.status_code} {answer.text}")


def _left(key: dict[str, str]) -> float:
    """Return for how many seconds a token is good yet."""
    return (datetime.fromisoformat(key["expiration time"]) - datetime.now(UTC)).total_seconds()


def _read(path: Path, other_than: str = "", kind: Kind = Kind.INFERENCE) -> dict[str, Any]:
    """Read the file once it is whole, and holds another token than one."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            keys: dict[str, Any] = json.loads(path.read_text())
            if keys[kind]["key"] != other_than:
                return keys
            problem = "its token is the old one"
        except (OSError, ValueError, KeyError) as error:
            problem = str(error)
        if time.monotonic() > end:
            raise ServerError(f"{path} gives no token: {problem}")
        time.sleep(0.05)
