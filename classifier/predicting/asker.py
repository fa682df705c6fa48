"""What both clients do alike: what they send, what an answer means, and what is asked again.

    failure                                             asked again
    no connection, or it broke, or no answer in time    yes
    503  the queue is full, or no worker is ready       yes
    503  the handler failed, and with it a whole batch  yes
    507  a worker died, or is out of memory             yes
    500  a worker died, or took too long                yes
    408, 429, 502, 504  from a proxy before the server  yes
    400, 401, 403  the token is missing or wrong        once, where the token comes from a function
                                                        that has another one by now
    any other 4xx: the request is at fault              no
    any other 5xx: the server is                        no

Many small pictures go together, as a body of KServe's protocol v1: a request costs the client more
than such a picture costs the server. Where a request of several fails, each of its pictures is
asked alone, so that none spoils another; they share the time that is left.

Asking again waits first, twice as long each time and by chance less, so that many clients do not
come back at one moment; and it ends at the deadline. A prediction changes nothing in the server,
so asking twice does no harm.
"""

from __future__ import annotations

import base64
import contextlib
import json
import time
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, NoReturn

import httpx
import tenacity

from ..errors import (
    ClassifierError,
    InputError,
    PredictionError,
    TokenError,
    UnavailableError,
    error_of,
)
from ..tokens import TokenAuth, is_refused
from .prediction import Prediction

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any, TypeVar

    from .prediction import Found

    C = TypeVar("C", httpx.Client, httpx.AsyncClient)
    Token = str | Callable[[], str] | None
    OnRetry = Callable[[str], None] | None
    Input = bytes | InputError
    """An image file, or why there is none."""

DEADLINE = 60.0  # seconds
TIMEOUT = 20.0  # seconds
SHORTEST = 0.1
"""Seconds: with less left, nothing is asked again, for the answer would come too late."""
CONNECTIONS = 32
"""Connections that are kept: two workers' batches of 16."""
AT_ONCE = 16
"""Requests of many pictures that are under way at once, and threads that read them."""
TOGETHER = 16
"""Pictures that go in one request, at most. The handler takes 64; but they share a fate."""
TOGETHER_BYTES = 2**20
"""Bytes of pictures that go in one request, at most; a larger picture goes alone."""
FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0  # seconds
IN_GOOD_TIME = 10.0
"""Seconds in which a server shall answer all that is under way, well within TIMEOUT."""
ON_THE_WAY = {408, 429, 502, 503, 504}
"""Statuses of requests that no worker has seen, unless it was one that failed; they may be gone
when the same is asked again."""
OUT_OF_MEMORY = 507
"""A worker's; it may be gone, too."""
WORKER_FAILED = {500: ("Worker died", "did not respond"), 503: ("Prediction failed",)}
"""What TorchServe says, by status, where a worker failed: by one image of its batch, or by none."""
NEVER_SENT = (httpx.LocalProtocolError, httpx.UnsupportedProtocol)
"""What fails before anything is sent, such as a header that can't be: it would fail again."""
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True)
class Question:
    """What one request asks.

    Attributes:
        images: the image files.
        version: which answers; the default one if None.
        end: when it must be answered.
        until: when it is no more asked again.
        abandoned: is set when nobody waits for the answer any more: then neither is it.
    """

    images: Sequence[bytes]
    version: str | None
    end: float
    until: float
    abandoned: Event = field(default_factory=Event)

    def one_by_one(self) -> Iterator[Question]:
        """Yield a question for each image, as its turn comes.

        Each is asked again for its fair part of what is left then: one that never has an answer
        leaves the others their time.
        """
        for left, image in zip(range(len(self.images), 0, -1), self.images, strict=True):
            now = time.monotonic()
            yield replace(self, images=[image], until=now + (self.end - now) / left)


class PassingError(Exception):
    """A failure that may be gone when the same is asked again.

    Attributes:
        status: of the server's answer; None where it gave none.
        is_workers: a worker has failed, and not the way to it.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.is_workers = _is_workers(status, message)


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
        trust_env: bool,
    ) -> None:
        address = _address(url)
        # As messages name it: they go into logs and results, where no password belongs.
        self.url = str(address.copy_with(username=None, password=None)).rstrip("/")
        self.model = model
        self.deadline, self.timeout = deadline, timeout
        self._on_retry, self._abandoned = on_retry, Event()
        self.connection: dict[str, Any] = {
            "base_url": url.rstrip("/"),
            "headers": headers,
            "auth": TokenAuth(partial(_token, token)) if token else None,
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=CONNECTIONS),
            # A proxy of the environment can't reach this machine's loopback.
            "trust_env": trust_env and address.host not in LOOPBACK,
            "verify": _trusted() if address.scheme == "https" else True,
        }

    def open(self, kind: Callable[..., C]) -> C:
        """Return a client of httpx, of the one kind or the other.

        Raises:
            InputError: the environment names a proxy that httpx can't use.
        """
        try:
            return kind(**self.connection)
        except (ImportError, ValueError) as error:
            raise InputError(f"the environment's proxy can't be used: {error}") from None

    def question(self, images: Sequence[bytes], version: str | None) -> Question:
        """Return what is asked now: it may take the whole deadline."""
        end = time.monotonic() + self.deadline
        return Question(images, version, end, end, self._abandoned)

    def abandon(self) -> None:
        """Ask again no more what is asked now: nobody waits for the answers."""
        abandoned, self._abandoned = self._abandoned, Event()
        abandoned.set()

    def check(self, question: Question) -> None:
        """Fail where nobody waits for the answer any more, as after a pause between attempts."""
        if question.abandoned.is_set():
            raise UnavailableError(f"{self.url} was not asked again: nobody waits for it")

    def request(self, question: Question) -> dict[str, Any]:
        """Return what `httpx.Client.put` shall send, and how long it may take."""
        images, version = question.images, question.version
        is_one = len(images) == 1
        kind = "application/octet-stream" if is_one else "application/json"
        return {
            "url": f"/predictions/{self.model}" + (f"/{version}" if version else ""),
            "content": images[0] if is_one else _instances(images),
            "headers": {"Content-Type": kind},
            "timeout": max(0.001, min(self.timeout, question.end - time.monotonic())),
        }

    def retries(self, question: Question) -> dict[str, Any]:
        """Return how tenacity shall ask again."""
        is_one = len(question.images) == 1

        def passes(error: BaseException) -> bool:
            # One image may have failed a worker: several are asked alone, and not again together.
            return isinstance(error, PassingError) and (is_one or not error.is_workers)

        return {
            "retry": tenacity.retry_if_exception(passes),
            "wait": tenacity.wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
            "stop": lambda state: (
                question.abandoned.is_set()
                or time.monotonic() + state.upcoming_sleep + SHORTEST >= question.until
            ),
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
            return self._predictions(answer, count)
        status, message = answer.status_code, error_of(answer)[1]
        said = f"{self.url} answers {status}: {message}"
        if is_refused(answer):
            raise TokenError(said, status)
        if status in ON_THE_WAY or _is_workers(status, message):
            raise PassingError(said, status)
        if answer.is_client_error:
            raise InputError(said, status)
        raise UnavailableError(said, status)

    def _predictions(self, answer: httpx.Response, count: int) -> list[Found]:
        """Return what came of each of so many images: of one as it is, of several by KServe's v1.

        Raises:
            UnavailableError: the version's handler is not ours, and answers in a form of its own.
        """
        version = answer.headers.get("X-Model-Version", "")
        try:
            said = answer.json()
            told = [{"probabilities": said}] if count == 1 else said["predictions"]
            found = [self._found(one, version) for one in told]
        except (KeyError, TypeError, ValueError, AttributeError):
            found = []
        if len(found) != count:
            raise UnavailableError(
                f"{self.url} answers no labels and probabilities", answer.status_code
            )
        return found

    def _found(self, one: Mapping[str, Any], version: str) -> Found:
        if "error" in one:
            return InputError(f"{self.url} answers 400: {one['error']}", httpx.codes.BAD_REQUEST)
        probabilities = {str(k): float(v) for k, v in one["probabilities"].items()}
        if not probabilities:
            raise ValueError
        return Prediction(probabilities, version)

    def failure(self, error: httpx.HTTPError) -> Exception:
        """Return what it means that a request failed."""
        said = f"{self.url} gives no answer: {str(error) or type(error).__name__}"
        if "CERTIFICATE_VERIFY_FAILED" in said:
            said += " (SSL_CERT_FILE may name the file of a certificate to trust)"
        elif isinstance(error, httpx.TransportError) and not isinstance(error, NEVER_SENT):
            return PassingError(said)
        return UnavailableError(said)

    def give_up(self, error: PassingError) -> UnavailableError:
        """Return what it means that a failure has not passed."""
        return UnavailableError(f"{error} (asked again within {self.deadline:g} s)", error.status)


def fail_at_once(failure: str) -> NoReturn:
    """Be a client's `on_retry` that asks nothing again, for that would hide what failed."""
    raise UnavailableError(failure)


def _address(url: str) -> httpx.URL:
    """Return an address in its parts, or raise InputError."""
    with contextlib.suppress(httpx.InvalidURL):  # as for a port that is no number
        if (address := httpx.URL(url)).scheme in ("http", "https"):
            return address
    raise InputError(f"{url!r} is no address: write it as http://127.0.0.1:8080")


def _trusted() -> ssl.SSLContext:
    """Return what vouches for servers: the authorities of the system, and those of httpx."""
    context = httpx.create_ssl_context()
    context.load_default_certs()
    return context


def _is_workers(status: int | None, message: str) -> bool:
    """Tell whether an answer says that a worker has failed, and not the way to it."""
    words = WORKER_FAILED.get(status or 0, ())
    return status == OUT_OF_MEMORY or any(said in message for said in words)


def _token(token: str | Callable[[], str]) -> str:
    """Return a token, without the line's end that a file of it has, or raise TokenError."""
    try:
        found = (token if isinstance(token, str) else token()).strip()
    except (ClassifierError, httpx.HTTPError) as error:
        raise TokenError(f"no token: {error}") from error
    if not (found.isascii() and found.isprintable()):
        raise TokenError("the token has letters that no header can hold: give it as it was made")
    return found


def _instances(images: Sequence[bytes]) -> bytes:
    """Return a body of KServe's protocol v1."""
    instances = [{"b64": base64.b64encode(image).decode()} for image in images]
    return json.dumps({"instances": instances}).encode()


class Pace:
    """How many pictures go in one request, at most.

    AT_ONCE requests are under way, and a server that gathers them answers none before all. So the
    first one goes alone, and tells how many a slow net answers in good time.
    """

    def __init__(self) -> None:
        self.together = TOGETHER

    def learn(self, pictures: int, seconds: float) -> None:
        """Take note of how long so many pictures took."""
        answered = pictures / max(seconds, 1e-3) * IN_GOOD_TIME
        self.together = max(1, min(TOGETHER, int(answered / AT_ONCE)))


def grouped(inputs: Iterable[Input], pace: Pace) -> Iterator[list[Input]]:
    """Yield what goes in one request."""
    some: list[Input] = []
    size = 0
    for one in inputs:
        more = len(one) if isinstance(one, bytes) else 0
        if some and (len(some) >= pace.together or size + more > TOGETHER_BYTES):
            yield some
            some, size = [], 0
        some.append(one)
        size += more
    if some:
        yield some


def images_of(inputs: Iterable[Input]) -> list[bytes]:
    """Return what can be sent."""
    return [one for one in inputs if isinstance(one, bytes)]


def merge(inputs: Iterable[Input], answers: Iterable[Found]) -> list[Found]:
    """Return what came of each input: of what was sent, the answers in their order."""
    rest = iter(answers)
    return [one if isinstance(one, InputError) else next(rest) for one in inputs]


def failed(question: Question, error: PredictionError) -> list[Found] | None:
    """Return what became of images whose request failed; None where each is asked alone.

    That is of no use where nobody answers, all are refused, or what is asked for is not served.
    """
    count = len(question.images)
    is_vain = error.status in (None, httpx.codes.NOT_FOUND, *ON_THE_WAY) and not _is_workers(
        error.status, str(error)
    )
    return [error] * count if count == 1 or is_vain else None
