"""The tokens that a TorchServe with token authorization wants.

It writes them to key_file.json in its folder, anew at each start: one for the inference API, one
for the management API, both good for an hour (`token_expiration_min`), and one that gives new ones.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import httpx

from .errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEY_FILE = "key_file.json"
LEAST_LEFT = 30.0
"""Seconds that a token must be good for yet; one that is not is renewed."""


class Kind(StrEnum):
    """Which API a token is for."""

    INFERENCE = "inference"
    MANAGEMENT = "management"


PATIENCE = 2.0
"""Seconds that the file is waited for: TorchServe does not write it at one stroke."""


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
