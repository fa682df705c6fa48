"""What both clients do alike: what they send, what an answer means, and what is asked again.

    failure                                             asked again
    no connection, or it broke, or no answer in time    yes
    503  the queue is full, or no worker is ready       yes
    507  a worker is out of memory                      yes
    500  a worker died, or took too long                yes
    502, 504  from a proxy before the server            yes
    400  the token is missing, wrong or expired         once, where the token comes from a function
                                                        that has another one by now
    any other 4xx: the request is at fault              no
    any other 5xx: the server is                        no

Many small pictures go together, as a body of KServe's protocol v1: a request costs the client more
than such a picture costs the server. Where a request of several fails, each of its pictures is
asked alone, so that none spoils another.

Asking again waits first, twice as long each time and by chance less, so that many clients do not
come back at one moment; and it ends at the deadline. A prediction changes nothing in the server,
so asking twice does no harm.
"""

from __future__ import annotations

import base64
import json
import time
from functools import partial
from operator import length_hint
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import tenacity

from .errors import (
    InputError,
    LateError,
    PredictionError,
    TokenError,
    UnavailableError,
    error_of,
)
from .parallel import batched
from .prediction import Prediction, to_bytes
from .tokens import TokenAuth, is_refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from .prediction import Found, Picture

    Token = str | Callable[[], str] | None
    OnRetry = Callable[[str], None] | None
    Read = bytes | InputError
    """An image file, or why it can't be read."""

DEADLINE = 60.0  # seconds
TIMEOUT = 20.0  # seconds
CONNECTIONS = 32
"""Connections that are kept: two workers' batches of 16."""
AT_ONCE = 8
"""Requests of many pictures that are under way at once."""
TOGETHER = 32
"""Pictures that go in one request, at most. The handler takes 64."""
TOGETHER_BYTES = 2**20
"""Bytes of pictures that go in one request, at most; a larger picture goes alone."""
FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0  # seconds
PASSING = {502, 503, 504, 507}
"""Statuses that may be gone when the same is asked again."""
WORKER_FAILED = ("Worker died", "Responses from worker", "did not respond", "timed out")
"""What TorchServe says with status 500 where a worker, and not the request, was at fault."""
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class PassingError(Exception):
    """A failure that may be gone when the same is asked again."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Asker:
    """What both clients know: where to ask, how, and what an answer means."""

    def __init__(
        self,
        url: str,
        model: str,
        token: Token,
        deadline: float,
        timeout: float,
        on_retry: OnRetry,
        headers: Mapping[str, str] | None,
    ) -> None:
        self.url, self.model = url.rstrip("/"), model
        if urlsplit(url).scheme not in ("http", "https"):
            raise InputError(f"{url!r} is no address: write it as http://127.0.0.1:8080")
        self.deadline, self.timeout = deadline, timeout
        self._on_retry = on_retry
        if isinstance(token, str):
            token = partial(str, token)
        self.connection: dict[str, Any] = {
            "base_url": self.url,
            "headers": headers,
            "auth": TokenAuth(token) if token else None,
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=CONNECTIONS),
            # A proxy of the environment can't reach this machine's loopback.
            "trust_env": urlsplit(url).hostname not in LOOPBACK,
        }

    def request(self, images: Sequence[bytes], version: str | None, end: float) -> dict[str, Any]:
        """Return what `httpx.Client.put` shall send, and how long it may take."""
        is_one = len(images) == 1
        kind = "application/octet-stream" if is_one else "application/json"
        return {
            "url": f"/predictions/{self.model}" + (f"/{version}" if version else ""),
            "content": images[0] if is_one else _instances(images),
            "headers": {"Content-Type": kind},
            "timeout": max(0.001, min(self.timeout, end - time.monotonic())),
        }

    def end(self) -> float:
        """Return when what is asked now must be answered."""
        return time.monotonic() + self.deadline

    def retries(self, end: float) -> dict[str, Any]:
        """Return how tenacity shall ask again, until an end."""
        return {
            "retry": tenacity.retry_if_exception_type(PassingError),
            "wait": tenacity.wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
            "stop": lambda state: time.monotonic() + state.upcoming_sleep >= end,
            "before_sleep": self._tell,
            "reraise": True,
        }

    def _tell(self, state: tenacity.RetryCallState) -> None:
        """Tell who wants to know that something is asked again, and why."""
        if self._on_retry is not None and state.outcome is not None:
            self._on_retry(str(state.outcome.exception()))

    def read(self, answer: httpx.Response, count: int) -> list[Found]:
        """Return what came of each of so many images, or raise what the answer means."""
        if answer.status_code == httpx.codes.OK:
            version = answer.headers.get("X-Model-Version", "")
            if count == 1:
                return [Prediction(answer.json(), version)]
            return self._predictions(answer, version, count)
        status, message = answer.status_code, error_of(answer)[1]
        said = f"{self.url} answers {status}: {message}"
        if is_refused(answer):
            raise TokenError(said, status)
        if status in PASSING:
            raise PassingError(said, status)
        if status == 500 and any(words in message for words in WORKER_FAILED):
            raise PassingError(said, status)
        if answer.is_client_error:
            raise InputError(said, status)
        raise UnavailableError(said, status)

    def _predictions(self, answer: httpx.Response, version: str, count: int) -> list[Found]:
        """Return what came of each of several images, by KServe's protocol v1."""
        try:
            said = answer.json()["predictions"]
            found: list[Found] = [
                InputError(f"{self.url} answers 400: {one['error']}", httpx.codes.BAD_REQUEST)
                if "error" in one
                else Prediction(one["probabilities"], version)
                for one in said
            ]
        except (KeyError, TypeError, ValueError):
            found = []
        if len(found) != count:  # the version has a handler of its own
            raise InputError(f"{self.url} takes one picture a request", answer.status_code)
        return found

    def failure(self, error: Exception) -> Exception:
        """Return what a request's failure means."""
        if isinstance(error, httpx.TransportError):
            reason = str(error) or type(error).__name__
            return PassingError(f"{self.url} gives no answer: {reason}")
        return TokenError(f"no token: {error}")  # for all else comes from asking for one

    def give_up(self, error: PassingError) -> LateError:
        """Return what it means that a failure has not passed."""
        return LateError(f"{error} (asked again for {self.deadline:g} s)", error.status)


def _instances(images: Sequence[bytes]) -> bytes:
    """Return a body of KServe's protocol v1."""
    instances = [{"b64": base64.b64encode(image).decode()} for image in images]
    return json.dumps({"instances": instances}).encode()


def parts(pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
    """Yield pictures that one thread or task reads and asks: few, where there are few in all."""
    count = length_hint(pictures, AT_ONCE * TOGETHER)
    return batched(pictures, max(1, min(TOGETHER, count // AT_ONCE)))


def requests(pictures: Iterable[Picture]) -> Iterator[list[Read]]:
    """Read pictures when their turn comes, and yield what goes in one request."""
    some: list[Read] = []
    size = 0
    for picture in pictures:
        try:
            image: Read = to_bytes(picture)
        except InputError as error:
            image = error
        more = len(image) if isinstance(image, bytes) else 0
        if some and size + more > TOGETHER_BYTES:
            yield some
            some, size = [], 0
        some.append(image)
        size += more
    yield some


def merge(some: Sequence[Read], answers: Iterable[Found]) -> list[Found]:
    """Return what came of each: in place of what could be read, the answers."""
    rest = iter(answers)
    return [next(rest) if isinstance(one, bytes) else one for one in some]


def failed(images: Sequence[bytes], error: PredictionError) -> list[Found] | None:
    """Return what became of images whose request failed; None where each is to be asked alone."""
    is_vain = isinstance(error, LateError) or error.status == httpx.codes.NOT_FOUND
    return [error] * len(images) if len(images) == 1 or is_vain else None
