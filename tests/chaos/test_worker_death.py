"""Workers are killed under load."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psutil

from .load import assert_all_right, load_on

if TYPE_CHECKING:
    from ..deployment import Deployment

BATCH = 16


def ready(server: Deployment) -> set[int]:
    """Return the processes of the workers that are READY."""
    workers = server.server.management.workers("cifar10", "1.0")
    return {worker.pid for worker in workers if worker.is_ready}


def wait_until_both_are_ready(server: Deployment) -> set[int]:
    end = time.monotonic() + 120
    while len(found := ready(server)) < 2:
        assert time.monotonic() < end, server.log_tail()
        time.sleep(0.05)
    return found


def test_worker_death(served: Deployment, long: bool, seed: int, figures: dict[str, Any]) -> None:
    kills, least = (20, 10_000) if long else (4, 1_500)
    between, seconds = [], 0.0
    with load_on(served.inference, seed) as load:
        load.wait_for(100)
        for kill in range(kills):
            victim = sorted(wait_until_both_are_ready(served))[kill % 2]
            before, begin = len(load.answers), time.monotonic()
            psutil.Process(victim).kill()
            while victim in ready(served):  # until TorchServe has noticed
                time.sleep(0.01)
            wait_until_both_are_ready(served)
            seconds = max(seconds, time.monotonic() - begin)
            between.append(len(load.answers) - before)
        load.wait_for(max(100, least - len(load.answers)))
    figures |= {
        "workers killed": kills,
        "requests answered": len(load.answers),
        "requests lost": len(load.lost),
        "failed at the server, and asked again by the client": len(load.failures),
        "fewest answers between a kill and both READY again": min(between),
        "longest of these times": f"{seconds:.1f} s",
    }
    assert_all_right(load, served.place.model_store / "cifar10-1.0.mar")
    assert min(between) > 0, "a moment without an answer"
    others = [failure for failure in load.failures if "Worker died." not in failure]
    assert not others, f"not by the death itself, as a 503 for want of workers: {others[:3]}"
    assert len(load.failures) <= kills * BATCH, "more than the batches in flight"
