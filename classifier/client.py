"""Ask a server for predictions, and lose none: failures that pass are asked again.

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

Asking again waits first, twice as long each time and by chance less, so that many clients do not
come back at one moment; and it ends at the deadline. A prediction changes nothing in the server,
so asking twice does no harm.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self, overload
from urllib.parse import urlsplit

import httpx
import tenacity

from .errors import ClassifierError, InputError, TokenError, UnavailableError, error_of
from .prediction import Prediction, to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Any, TypeVar

    from .prediction import Picture

    Token = str | Callable[[], str] | None
    OnRetry = Callable[[str], None] | None
    P = TypeVar("P", bound=Picture)

DEADLINE = 60.0  # seconds
TIMEOUT = 20.0  # seconds
CONNECTIONS = 32
"""Requests that a list of pictures is asked with at once: two workers' batches of 16."""
FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0  # seconds
PASSING = {502, 503, 504, 507}
"""Statuses that may be gone when the same is asked again."""
WORKER_FAILED = ("Worker died", "Responses from worker", "did not respond", "timed out")
"""What TorchServe says with status 500 where a worker, and not the request, was at fault."""
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class _PassingError(Exception):
    """A failure that may be gone when the same is asked again."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class _Asker:
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
        self._token = token
        self._bearer: str | None = None
        self._lock = threading.Lock()
        self.connection: dict[str, Any] = {
            "base_url": self.url,
            "headers": headers,
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=CONNECTIONS),
            # A proxy of the environment can't reach this machine's loopback.
            "trust_env": urlsplit(url).hostname not in LOOPBACK,
        }

    def request(
        self, image: bytes, version: str | None, bearer: str | None, end: float
    ) -> dict[str, Any]:
        """Return what `httpx.Client.put` shall send, and how long it may take."""
        headers = {"Content-Type": "application/octet-stream"}
        if bearer is not None:
            headers["Authorization"] = f"Bearer {bearer}"
        return {
            "url": f"/predictions/{self.model}" + (f"/{version}" if version else ""),
            "content": image,
            "headers": headers,
            "timeout": max(0.001, min(self.timeout, end - time.monotonic())),
        }

    def bearer(self) -> str | None:
        """Return the token to send now."""
        with self._lock:
            if self._bearer is None and self._token is not None:
                self._bearer = self._token if isinstance(self._token, str) else self._fetch()
            return self._bearer

    def renew(self, used: str | None) -> bool:
        """Ask for the token again; tell whether there is another one than was used."""
        with self._lock:
            if self._bearer == used and callable(self._token):
                self._bearer = self._fetch()
            return self._bearer != used

    def _fetch(self) -> str:
        try:
            return self._token()  # type: ignore[misc, operator]
        except (ClassifierError, httpx.HTTPError) as error:
            raise TokenError(f"no token: {error}") from error

    def retries(self) -> dict[str, Any]:
        end = time.monotonic() + self.deadline
        return {
            "retry": tenacity.retry_if_exception_type(_PassingError),
            "wait": tenacity.wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
            "stop": lambda state: time.monotonic() + state.upcoming_sleep >= end,
            "before_sleep": self._tell,
            "reraise": True,
        }

    def _tell(self, state: tenacity.RetryCallState) -> None:
        """Tell who wants to know that something is asked again, and why."""
        if self._on_retry is not None and state.outcome is not None:
            self._on_retry(str(state.outcome.exception()))

    def read(self, answer: httpx.Response) -> Prediction:
        """Return the prediction, or raise what the answer means."""
        if answer.status_code == httpx.codes.OK:
            return Prediction(answer.json(), answer.headers.get("X-Model-Version", ""))
        status, kind, message = answer.status_code, *error_of(answer)
        said = f"{self.url} answers {status}: {message}"
        if kind == "InvalidKeyException" or status in (401, 403):
            raise TokenError(said, status)
        if status in PASSING:
            raise _PassingError(said, status)
        if status == 500 and any(words in message for words in WORKER_FAILED):
            raise _PassingError(said, status)
        if answer.is_client_error:
            raise InputError(said, status)
        raise UnavailableError(said, status)

    def broken(self, error: httpx.TransportError) -> _PassingError:
        reason = str(error) or type(error).__name__
        return _PassingError(f"{self.url} gives no answer: {reason}")

    def give_up(self, error: _PassingError) -> UnavailableError:
        return UnavailableError(f"{error} (asked again for {self.deadline:g} s)", error.status)


class Client:
    """Asks a server, one picture at a time or many at once; may be used by several threads.

    Args:
        url: of the inference API, such as http://127.0.0.1:8080.
        model: the model's name.
        token: where the server wants one: the token, or a function that returns the current one,
            such as `classifier.tokens.source(…)` gives.
        deadline: seconds within which a picture must be answered, all attempts together.
        timeout: seconds that one attempt may take.
        on_retry: is told, in words, of each failure after which a picture is asked again.
        headers: are sent with each request, besides its own.

    Example:
        >>> with Client("http://127.0.0.1:8080") as client:
        ...     client.predict("samples/cat.jpg").label
        'cat'
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        model: str = "cifar10",
        token: Token = None,
        deadline: float = DEADLINE,
        timeout: float = TIMEOUT,
        on_retry: OnRetry = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._asker = _Asker(url, model, token, deadline, timeout, on_retry, headers)
        self._http = httpx.Client(**self._asker.connection)
        weakref.finalize(self, self._http.close)

    @overload
    def predict(self, pictures: Picture, version: str | None = None) -> Prediction: ...
    @overload
    def predict(
        self, pictures: list[P] | tuple[P, ...], version: str | None = None
    ) -> list[Prediction]: ...
    def predict(
        self, pictures: Picture | list[P] | tuple[P, ...], version: str | None = None
    ) -> Prediction | list[Prediction]:
        """Classify a picture, or each of a list.

        Args:
            pictures: paths, bytes of image files, PIL images, or uint8 H×W×3 RGB arrays.
            version: which answers; the default one if None.

        Raises:
            InputError: a picture is none, or the model or version isn't served.
            TokenError: the token is missing, wrong or expired.
            UnavailableError: no answer came within the deadline.
        """
        if not isinstance(pictures, list | tuple):
            return self._predict(to_bytes(pictures), version)
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return list(
                pool.map(lambda picture: self._predict(to_bytes(picture), version), pictures)
            )

    def _predict(self, image: bytes, version: str | None) -> Prediction:
        asker, end = self._asker, time.monotonic() + self._asker.deadline
        try:
            for attempt in tenacity.Retrying(**asker.retries()):
                with attempt:
                    bearer = asker.bearer()
                    try:
                        return self._ask(image, version, bearer, end)
                    except TokenError:
                        if not asker.renew(bearer):
                            raise
                        return self._ask(image, version, asker.bearer(), end)
        except _PassingError as error:
            raise asker.give_up(error) from None
        raise AssertionError("an attempt returns or raises")

    def _ask(self, image: bytes, version: str | None, bearer: str | None, end: float) -> Prediction:
        asker = self._asker
        try:
            answer = self._http.put(**asker.request(image, version, bearer, end))
        except httpx.TransportError as error:
            raise asker.broken(error) from None
        return asker.read(answer)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncClient:
    """As `Client`, for asyncio: `await client.predict(…)`, `async with AsyncClient(…)`."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        model: str = "cifar10",
        token: Token = None,
        deadline: float = DEADLINE,
        timeout: float = TIMEOUT,
        on_retry: OnRetry = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._asker = _Asker(url, model, token, deadline, timeout, on_retry, headers)
        self._http = httpx.AsyncClient(**self._asker.connection)

    @overload
    async def predict(self, pictures: Picture, version: str | None = None) -> Prediction: ...
    @overload
    async def predict(
        self, pictures: list[P] | tuple[P, ...], version: str | None = None
    ) -> list[Prediction]: ...
    async def predict(
        self, pictures: Picture | list[P] | tuple[P, ...], version: str | None = None
    ) -> Prediction | list[Prediction]:
        """Classify a picture, or each of a list, as `Client.predict` does."""
        if not isinstance(pictures, list | tuple):
            return await self._predict(to_bytes(pictures), version)
        at_once = asyncio.Semaphore(CONNECTIONS)

        async def one(picture: Picture) -> Prediction:
            async with at_once:
                return await self._predict(to_bytes(picture), version)

        asked = [asyncio.ensure_future(one(picture)) for picture in pictures]
        try:
            return list(await asyncio.gather(*asked))
        finally:
            for task in asked:
                task.cancel()

    async def _predict(self, image: bytes, version: str | None) -> Prediction:
        asker, end = self._asker, time.monotonic() + self._asker.deadline
        try:
            async for attempt in tenacity.AsyncRetrying(**asker.retries()):
                with attempt:
                    bearer = await asyncio.to_thread(asker.bearer)
                    try:
                        return await self._ask(image, version, bearer, end)
                    except TokenError:
                        if not await asyncio.to_thread(asker.renew, bearer):
                            raise
                        return await self._ask(image, version, asker.bearer(), end)
        except _PassingError as error:
            raise asker.give_up(error) from None
        raise AssertionError("an attempt returns or raises")

    async def _ask(
        self, image: bytes, version: str | None, bearer: str | None, end: float
    ) -> Prediction:
        asker = self._asker
        try:
            answer = await self._http.put(**asker.request(image, version, bearer, end))
        except httpx.TransportError as error:
            raise asker.broken(error) from None
        return asker.read(answer)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
