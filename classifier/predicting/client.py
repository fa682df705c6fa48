"""Ask a server for predictions, and lose none: failures that pass are asked again.

Which these are is told in `asker`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections import deque
from dataclasses import replace
from functools import partial
from itertools import islice
from threading import Event
from typing import TYPE_CHECKING, Self, overload

import httpx
import tenacity

from ..errors import PredictionError, TokenError
from ..parallel import in_order
from .asker import (
    AT_ONCE,
    DEADLINE,
    TIMEOUT,
    Asker,
    Pace,
    PassingError,
    failed,
    grouped,
    images_of,
    merge,
)
from .prediction import Prediction, prediction_of, to_bytes, to_input

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import TypeVar

    from .asker import Input, OnRetry, Question, Token
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
        timeout: seconds without progress after which an attempt is given up; an answer that comes
            byte by byte is waited for.
        on_retry: is told, in words, of each failure after which a picture is asked again.
        headers: are sent with each request, besides its own.
        trust_env: whether requests go through the proxy that the environment names, as HTTP_PROXY
            does; they never do where the address is this machine's loopback.

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
        trust_env: bool = True,
    ) -> None:
        self._asker = Asker(url, model, token, deadline, timeout, on_retry, headers, trust_env)
        self._http = self._asker.open(httpx.Client)
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
            pictures: paths, bytes of image files, files open for reading bytes, PIL images, or
                uint8 H×W×3 RGB arrays.
            version: which answers; the default one if None.

        Raises:
            InputError: a picture is none, or the model or version isn't served.
            TokenError: the token is missing, wrong or expired.
            UnavailableError: no answer came within the deadline.
        """
        if not isinstance(pictures, list | tuple):
            question = self._asker.question([to_bytes(pictures)], version)
            return prediction_of(self._predict(question)[0])
        with contextlib.closing(self.predict_each(pictures, version)) as found:
            return list(map(prediction_of, found))

    def predict_each(
        self, pictures: Iterable[Picture], version: str | None = None
    ) -> Generator[Found]:
        """Classify many pictures; yield, in order, each one's prediction, or why it has none.

        Each is read when its turn comes near: there may be more than fit into memory.

        Args:
            pictures: as `predict` takes them.
            version: which answers; the default one if None.

        Raises:
            TokenError: the token is missing, wrong or expired.
        """
        abandoned, pace = Event(), Pace()
        ask = partial(self._ask_together, version=version, abandoned=abandoned)
        with contextlib.closing(in_order(to_input, pictures, AT_ONCE)) as inputs:
            groups = grouped(inputs, pace)
            for first in islice(groups, 1):
                begin = time.monotonic()
                found = ask(first)
                pace.learn(len(first), time.monotonic() - begin)
                yield from found
            with contextlib.closing(in_order(ask, groups, AT_ONCE, abandoned.set)) as answers:
                for found in answers:
                    yield from found

    def _ask_together(
        self, inputs: Sequence[Input], version: str | None, abandoned: Event
    ) -> list[Found]:
        images = images_of(inputs)
        question = replace(self._asker.question(images, version), abandoned=abandoned)
        return merge(inputs, self._each(question) if images else [])

    def _each(self, question: Question) -> list[Found]:
        """Ask for images in one request; if it fails, for each alone, by the same end."""
        try:
            return self._predict(question)
        except TokenError:
            raise
        except PredictionError as error:
            if (found := failed(question, error)) is not None:
                return found
        return [found for one in question.one_by_one() for found in self._each(one)]

    def _predict(self, question: Question) -> list[Found]:
        """Ask for images in one request, and again while that may help."""
        asker = self._asker
        try:
            sleep = tenacity.sleep_using_event(question.abandoned)
            for attempt in tenacity.Retrying(**asker.retries(question), sleep=sleep):
                with attempt:
                    return self._ask(question)
        except PassingError as error:
            raise asker.give_up(error) from None
        raise AssertionError("an attempt returns or raises")

    def _ask(self, question: Question) -> list[Found]:
        asker = self._asker
        asker.check(question)
        try:
            answer = self._http.put(**asker.request(question))
        except httpx.HTTPError as error:
            raise asker.failure(error) from None
        return asker.read(answer, len(question.images))

    def abandon(self) -> None:
        """Ask again no more what other threads ask now, for nobody waits: it ends soon.

        Of lists nothing is given up so: `predict_each` ends when it is closed.
        """
        self._asker.abandon()

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
        trust_env: bool = True,
    ) -> None:
        self._asker = Asker(url, model, token, deadline, timeout, on_retry, headers, trust_env)
        self._http = self._asker.open(httpx.AsyncClient)

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
            image = await asyncio.to_thread(to_bytes, pictures)
            question = self._asker.question([image], version)
            return prediction_of((await self._predict(question))[0])
        async with contextlib.aclosing(self.predict_each(pictures, version)) as found:
            return [prediction_of(one) async for one in found]

    async def predict_each(
        self, pictures: Iterable[Picture], version: str | None = None
    ) -> AsyncGenerator[Found]:
        """Classify many pictures, as `Client.predict_each` does."""
        pace = Pace()
        groups = grouped(map(to_input, pictures), pace)
        read = partial(asyncio.to_thread, next, groups, None)  # files are read, images encoded
        if (first := await read()) is None:
            return
        begin = time.monotonic()
        found = await self._ask_together(first, version)
        pace.learn(len(first), time.monotonic() - begin)
        for one in found:
            yield one
        asked: deque[asyncio.Task[list[Found]]] = deque()
        try:
            while True:
                while len(asked) < AT_ONCE and (some := await read()) is not None:
                    asked.append(asyncio.create_task(self._ask_together(some, version)))
                if not asked:
                    return
                for one in await asked.popleft():
                    yield one
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _ask_together(self, inputs: Sequence[Input], version: str | None) -> list[Found]:
        images = images_of(inputs)
        question = self._asker.question(images, version)
        return merge(inputs, await self._each(question) if images else [])

    async def _each(self, question: Question) -> list[Found]:
        try:
            return await self._predict(question)
        except TokenError:
            raise
        except PredictionError as error:
            if (found := failed(question, error)) is not None:
                return found
        return [found for one in question.one_by_one() for found in await self._each(one)]

    async def _predict(self, question: Question) -> list[Found]:
        asker = self._asker
        try:
            async for attempt in tenacity.AsyncRetrying(**asker.retries(question)):
                with attempt:
                    return await self._ask(question)
        except PassingError as error:
            raise asker.give_up(error) from None
        raise AssertionError("an attempt returns or raises")

    async def _ask(self, question: Question) -> list[Found]:
        asker = self._asker
        try:
            answer = await self._http.put(**asker.request(question))
        except httpx.HTTPError as error:
            raise asker.failure(error) from None
        return asker.read(answer, len(question.images))

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
