"""Ask a server for predictions, and lose none: failures that pass are asked again.

Which these are is told in `asker`.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Self, overload

import httpx
import tenacity

from .asker import (
    AT_ONCE,
    DEADLINE,
    TIMEOUT,
    Asker,
    PassingError,
    failed,
    merge,
    parts,
    requests,
)
from .errors import ClassifierError, PredictionError, TokenError
from .parallel import in_order
from .prediction import Prediction, all_of, to_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import TypeVar

    from .asker import OnRetry, Token
    from .prediction import Found, Picture

    P = TypeVar("P", bound=Picture)


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
        self._asker = Asker(url, model, token, deadline, timeout, on_retry, headers)
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
        if isinstance(pictures, list | tuple):
            return all_of(list(self.predict_each(pictures, version)))
        return all_of(self._predict([to_bytes(pictures)], version, self._asker.end()))[0]

    def predict_each(
        self, pictures: Iterable[Picture], version: str | None = None
    ) -> Iterator[Found]:
        """Classify many pictures; yield, in order, each one's prediction, or why it has none.

        Each is read when its turn comes near: there may be more than fit into memory.

        Args:
            pictures: as `predict` takes them.
            version: which answers; the default one if None.

        Raises:
            TokenError: the token is missing, wrong or expired.
        """
        ask = partial(self._each, version=version)
        for found in in_order(ask, parts(pictures), AT_ONCE):
            yield from found

    def _each(self, pictures: Sequence[Picture], version: str | None) -> list[Found]:
        found: list[Found] = []
        for some in requests(pictures):
            images = [one for one in some if isinstance(one, bytes)]
            found += merge(some, self._together(images, version, self._asker.end()))
        return found

    def _together(self, images: Sequence[bytes], version: str | None, end: float) -> list[Found]:
        """Ask images in one request; if it fails, each alone."""
        if not images:
            return []
        try:
            return self._predict(images, version, end)
        except TokenError:
            raise
        except PredictionError as error:
            if (found := failed(images, error)) is not None:
                return found
        return [found for image in images for found in self._together([image], version, end)]

    def _predict(self, images: Sequence[bytes], version: str | None, end: float) -> list[Found]:
        asker = self._asker
        try:
            for attempt in tenacity.Retrying(**asker.retries(end)):
                with attempt:
                    return self._ask(images, version, end)
        except PassingError as error:
            raise asker.give_up(error) from None
        raise AssertionError("an attempt returns or raises")

    def _ask(self, images: Sequence[bytes], version: str | None, end: float) -> list[Found]:
        asker = self._asker
        try:
            answer = self._http.put(**asker.request(images, version, end))
        except (httpx.HTTPError, ClassifierError) as error:
            raise asker.failure(error) from None
        return asker.read(answer, len(images))

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
        self._asker = Asker(url, model, token, deadline, timeout, on_retry, headers)
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
        if isinstance(pictures, list | tuple):
            return all_of([found async for found in self.predict_each(pictures, version)])
        return all_of(await self._predict([to_bytes(pictures)], version, self._asker.end()))[0]

    async def predict_each(
        self, pictures: Iterable[Picture], version: str | None = None
    ) -> AsyncIterator[Found]:
        """Classify many pictures, as `Client.predict_each` does."""
        rest = parts(pictures)
        asked: deque[asyncio.Task[list[Found]]] = deque()
        try:
            while True:
                for some in islice(rest, AT_ONCE - len(asked)):
                    asked.append(asyncio.create_task(self._each(some, version)))
                if not asked:
                    return
                for found in await asked.popleft():
                    yield found
        finally:
            for task in asked:
                task.cancel()

    async def _each(self, pictures: Sequence[Picture], version: str | None) -> list[Found]:
        found: list[Found] = []
        for some in requests(pictures):
            images = [one for one in some if isinstance(one, bytes)]
            found += merge(some, await self._together(images, version, self._asker.end()))
        return found

    async def _together(
        self, images: Sequence[bytes], version: str | None, end: float
    ) -> list[Found]:
        if not images:
            return []
        try:
            return await self._predict(images, version, end)
        except TokenError:
            raise
        except PredictionError as error:
            if (found := failed(images, error)) is not None:
                return found
        return [found for image in images for found in await self._together([image], version, end)]

    async def _predict(
        self, images: Sequence[bytes], version: str | None, end: float
    ) -> list[Found]:
        asker = self._asker
        try:
            async for attempt in tenacity.AsyncRetrying(**asker.retries(end)):
                with attempt:
                    return await self._ask(images, version, end)
        except PassingError as error:
            raise asker.give_up(error) from None
        raise AssertionError("an attempt returns or raises")

    async def _ask(self, images: Sequence[bytes], version: str | None, end: float) -> list[Found]:
        asker = self._asker
        try:
            answer = await self._http.put(**asker.request(images, version, end))
        except (httpx.HTTPError, ClassifierError) as error:
            raise asker.failure(error) from None
        return asker.read(answer, len(images))

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
