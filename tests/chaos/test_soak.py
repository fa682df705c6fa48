"""A quarter of an hour at half load: memory and logs stay as they are."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt

from bench.open_loop import Asker

from ..images import encode, sample
from .load import load_on

if TYPE_CHECKING:
    from ..deployment import Deployment

MINUTES = 15
WARM = 3 * 60.0
"""Seconds in which memory may still grow: of Java's heap, its compiler, allocators and caches."""
LATE = (MINUTES - 5) * 60.0
"""From these seconds on the slope is told once more: what only settles has done so."""
COMPILED = "Java's compiled code"
"""It goes on growing for long, since what runs seldom is compiled late; it ends at 240 MB."""
PERIOD = 5.0  # seconds between two looks
PLOT = Path("docs/resilience/soak.png")
ENOUGH = 5_000
"""Requests after which a log's growth is told."""


def pictures(seed: int) -> list[bytes]:
    """Return photos of many sizes, from 32 to 2,000 pixels, as JPEG and PNG."""
    draw = random.Random(seed)
    sizes = [round(32 * 62 ** draw.random()) for _ in range(40)]
    kinds = ["JPEG", "JPEG", "JPEG", "PNG"]
    return [encode(sample().resize((s, max(16, 2 * s // 3))), draw.choice(kinds)) for s in sizes]


def held(server: Deployment) -> dict[str, float]:
    """Return what each part of a server holds: PSS, in MB."""
    java = server.server.process()
    assert java is not None
    maps = java.memory_maps(grouped=False)
    compiled = sum(part.pss for part in maps if part.perms == "rwxp")
    workers = [worker.memory_full_info().pss for worker in java.children(recursive=True)]
    return {
        "Java": (sum(part.pss for part in maps) - compiled) / 2**20,
        COMPILED: compiled / 2**20,
        "workers": sum(workers) / 2**20,
    }


def logged(server: Deployment) -> int:
    """Return the bytes of all logs."""
    return sum(path.stat().st_size for path in server.place.logs.rglob("*") if path.is_file())


@pytest.mark.usefixtures("only_long")
def test_soak(served: Deployment, seed: int, figures: dict[str, Any]) -> None:
    seconds, memory = [], []

    async def watch() -> None:
        begin = time.monotonic()
        while True:
            memory.append(await asyncio.to_thread(held, served))
            seconds.append(time.monotonic() - begin)
            await asyncio.sleep(PERIOD)

    async def run() -> tuple[float, list[int]]:
        asker = Asker(f"{served.inference}/predictions/cifar10", pictures(seed))
        peak = await asker.closed(32, 15)
        watcher = asyncio.create_task(watch())
        found = await asker.open(peak / 2, MINUTES * 60)
        watcher.cancel()
        return peak, [outcome.status for outcome in found]

    before = logged(served)
    peak, statuses = asyncio.run(run())
    growth = logged(served) - before
    figures |= {
        "seed": seed,
        "asked": f"{peak / 2:.0f}/s, half the closed-loop peak, for {MINUTES} minutes",
        "requests answered": statuses.count(200),
        "all other answers": len(statuses) - statuses.count(200),
    }
    times = np.array(seconds)
    for part in memory[0]:
        values = np.array([m[part] for m in memory])
        figures[f"{part}: memory (PSS) at the end"] = f"{values[-1]:.0f} MB"
        for begin in (LATE, WARM):
            slope, error = trend(times[times > begin] / 60, values[times > begin])
            figures[f"{part}: slope after {begin / 60:.0f} minutes"] = (
                f"{slope:+.2f} ± {error:.2f} MB a minute"
            )
        if part != COMPILED:
            assert slope * (MINUTES - WARM / 60) < 0.03 * values[-1], f"{part} grows: {values}"
    figures["logged for 10,000 requests"] = f"{growth / len(statuses) * 10:.1f} kB"
    plot(times / 60, memory)
    assert set(statuses) == {200}


def trend(at: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Return the slope of a line through values, and its standard error."""
    (slope, _), covariance = np.polyfit(at, values, 1, cov=True)
    return float(slope), float(np.sqrt(covariance[0, 0]))


def plot(minutes: np.ndarray, memory: list[dict[str, float]]) -> None:
    """Draw what each part held over time."""
    mpl.use("Agg")
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for part in memory[0]:
        axes.plot(minutes, [m[part] for m in memory], label=part)
    axes.axvline(WARM / 60, color="gray", linestyle=":", label="slopes are taken from here")
    axes.set(xlabel="minutes at half load", ylabel="memory (PSS), MB", ylim=(0, None))
    axes.legend()
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PLOT, dpi=100)
    plt.close(figure)


@pytest.mark.usefixtures("only_long")
@pytest.mark.parametrize("configuration", ["ours", "TorchServe's own"])
def test_logs(
    deployment: Deployment, configuration: str, seed: int, figures: dict[str, Any]
) -> None:
    if configuration != "ours":
        text = deployment.place.config.read_text()
        ours = " -Dlog4j.configurationFile=deploy/log4j2.xml"
        assert ours in text
        deployment.place.config.write_text(text.replace(ours, ""))
    deployment.start()
    with load_on(deployment.inference, seed) as load:
        load.wait_for(500)
        before, begin = logged(deployment), len(load.answers)
        load.wait_for(ENOUGH)
        growth = (logged(deployment) - before) / (len(load.answers) - begin)
    figures["logged for 10,000 requests"] = f"{growth * 10:,.1f} kB"
    assert configuration != "ours" or growth < 10, "bytes for a request"
