"""Doing the same to many things: in order, and what closing it leaves behind."""

from __future__ import annotations

import itertools
import threading

from classifier.parallel import in_order


def test_results_are_in_order_and_no_item_is_taken_early() -> None:
    taken = itertools.count()
    results = in_order(str, iter(lambda: next(taken), None), at_once=4)
    assert [next(results) for _ in range(10)] == [str(number) for number in range(10)]
    results.close()
    assert next(taken) < 20


def test_closing_waits_for_what_has_begun() -> None:
    begun, go_on = threading.Event(), threading.Event()
    ended: list[int] = []

    def work(number: int) -> int:
        if number:
            begun.set()
            go_on.wait(10)
            ended.append(number)
        return number

    results = in_order(work, range(100), at_once=2)
    assert next(results) == 0
    assert begun.wait(10)
    threading.Timer(0.2, go_on.set).start()
    results.close()
    assert 1 in ended
    assert len(ended) <= 4
