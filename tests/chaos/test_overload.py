"""Twice as much is asked as can be answered."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from bench.open_loop import Asker

from ..images import encode
from ..test_monitor import wait_for

if TYPE_CHECKING:
    from bench.open_loop import Outcome

    from ..deployment import Deployment

CLIENTS = 32
SECONDS = 60.0
LARGE = encode(Image.new("RGB", (1500, 1500), "teal"))
"""Takes a worker some 10 ms, and whoever sends it nothing: so the senders leave the processor to
the server, and twice its rate can be had from Python."""


def p99(outcomes: list[Outcome], status: int) -> float:
    """Return the 99th percentile of the times of answers with a status, in ms."""
    return 1e3 * float(np.percentile([o.seconds for o in outcomes if o.status == status], 99))


@pytest.mark.usefixtures("only_long")
def test_overload(served: Deployment, figures: dict[str, Any]) -> None:
    url = f"{served.inference}/predictions/cifar10"
    management = served.server.management

    async def run() -> tuple[float, list[Outcome], float, float]:
        asker = Asker(url, [LARGE])
        await asker.closed(CLIENTS, 5)  # warm
        peak = await asker.closed(CLIENTS, 15)
        begin = time.monotonic()
        found = await asker.open(2 * peak, SECONDS)
        drained = time.monotonic() - begin - SECONDS
        after = await asker.closed(CLIENTS, 10)
        return peak, found, drained, after

    peak, found, drained, after = asyncio.run(run())
    statuses = {outcome.status for outcome in found}
    served_ = sum(outcome.status == 200 for outcome in found)
    goodput = served_ / (SECONDS + drained)
    figures |= {
        "closed-loop peak": f"{peak:.0f}/s",
        "asked": f"{2 * peak:.0f}/s for {SECONDS:.0f} s",
        "answered with 200": f"{goodput:.0f}/s, {goodput / peak:.0%} of the peak",
        "refused with 503": f"{sum(o.status == 503 for o in found) / len(found):.0%}",
        "p99 of what was refused": f"{p99(found, 503):.0f} ms",
        "p99 of what was answered": f"{p99(found, 200):.0f} ms",
        "last answer after the load's end": f"{drained:.1f} s",
        "closed-loop rate right after": f"{after:.0f}/s, {after / peak:.0%} of the peak",
    }
    assert statuses == {200, 503}, "each got an answer, or was refused"
    assert goodput >= 0.9 * peak
    wait_for(lambda: management.pending("cifar10", "1.0") == 0)
    assert served.predict(LARGE).ok
