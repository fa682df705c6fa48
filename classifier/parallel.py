"""Do the same to many things, several at a time."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

A = TypeVar("A")
B = TypeVar("B")


def in_order(
    function: Callable[[A], B],
    items: Iterable[A],
    at_once: int,
    hurry: Callable[[], object] = lambda: None,
) -> Generator[B]:
    """Yield what a function makes of each item, in order, from so many threads.

    As `Executor.map`, but no item is taken before its turn comes near: there may be many. Once
    the generator is closed, or interrupted, what has not begun does not begin; what has, is told to
    hurry and waited for, so that it uses nothing that is closed next.
    """
    pool, rest = ThreadPoolExecutor(at_once), iter(items)
    waiting: deque[Future[B]] = deque()
    try:
        while True:
            room = at_once + 1 - len(waiting)
            waiting.extend(pool.submit(function, item) for item in islice(rest, room))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        hurry()
        pool.shutdown(cancel_futures=True)


def batched(items: Iterable[A], most: int) -> Iterator[list[A]]:
    """Yield lists of so many items, the last one perhaps of fewer."""
    rest = iter(items)
    while some := list(islice(rest, most)):
        yield some
