"""The default version changes under load, there and back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classifier.archiving import archive
from classifier.serving import config, rollout

from .load import assert_all_right, load_on

if TYPE_CHECKING:
    from ..deployment import Deployment
    from .load import Answer

Reign = tuple[float, float, str]
"""From when until when a version was the default, at most (s, monotonic)."""


def reigned(answer: Answer, reigns: list[Reign]) -> bool:
    """Tell whether the version that answered was the default at some moment of the request."""
    return any(
        version == answer.prediction.version and begin <= answer.answered and answer.asked <= end
        for begin, end, version in reigns
    )


def test_version_change(served: Deployment, long: bool, seed: int, figures: dict[str, Any]) -> None:
    rounds, least = (10, 20_000) if long else (1, 1_500)
    store = served.place.model_store
    archive.build("cifar10", "2.0", Path(archive.WEIGHTS), store)
    server = served.server
    sizes = config.sizes(server.releases[0], served.place.model_config)
    reigns: list[Reign] = []
    since, now = 0.0, "1.0"
    with load_on(served.inference, seed) as load:
        load.wait_for(100)
        for _ in range(rounds):
            for old, new in (("1.0", "2.0"), ("2.0", "1.0")):
                if new not in server.management.versions("cifar10"):
                    rollout.register(server, "cifar10", new, sizes)
                change = time.monotonic()
                server.management.set_default("cifar10", new)
                reigns.append((since, time.monotonic(), old))
                since, now = change, new
                load.wait_for(100)
                rollout.retire(server.management, "cifar10", old)
        load.wait_for(max(100, least - len(load.answers)))
    reigns.append((since, time.monotonic(), now))
    figures |= {
        "changes of the default, each with the old version retired": 2 * rounds,
        "requests answered": len(load.answers),
        "requests lost": len(load.lost),
        "failed at the server, and asked again by the client": len(load.failures),
        "longest wait for an answer": f"{max(a.answered - a.asked for a in load.answers):.1f} s",
    }
    assert {a.prediction.version for a in load.answers} == {"1.0", "2.0"}
    assert not load.failures, load.failures[:3]
    assert_all_right(load, store / "cifar10-1.0.mar")
    strays = [a for a in load.answers if not reigned(a, reigns)]
    assert not strays, strays[:3]
