"""From measurements to a page: medians with their range, ratios, and pictures."""

from __future__ import annotations

import datetime
import platform
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from joblib import cpu_count
from matplotlib.figure import Figure

from classifier.serving import java

from .page import put, spread, table
from .servers import PEERS, Ours, untuned

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from matplotlib.axes import Axes

mpl.use("agg")

Row = dict[str, Any]
Failures = dict[str, list[str]]
"""Why servers failed, once for each round in which they did, by name and kind."""
OURS = Ours.name
STYLES = {"engine": "-", "tutorial": "--"}
"""How lines are drawn, by kind."""
LATE = 5.0
"""ms that requests may be late; if most are later, their rate was not held."""
INSTRUCTIONS = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX-512 with VNNI",
    "avx_vnni": "AVX2 with VNNI",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
}
"""What a processor has for a net in 8-bit integers, by its flag in Linux, fastest first."""


def summary(rows: list[Row], failed: Failures) -> str:
    """Return tables of what was found, and what they leave out."""
    parts = [_throughput(rows), _latency(rows), _held(rows), _others(rows), _share(rows)]
    return "\n\n".join(filter(None, [*parts, _failures(failed, _rounds(rows))]))


def write(rows: list[Row], failed: Failures, docs: Path) -> None:
    """Write docs/benchmarks.md and its pictures."""
    pictures = docs / "benchmarks"
    pictures.mkdir(parents=True, exist_ok=True)
    _scaling(rows).savefig(pictures / "scaling.png", dpi=100)
    _frontier(rows).savefig(pictures / "latency.png", dpi=100)
    measured = f"{machine({row['server'] for row in rows})}; n = {_rounds(rows)} rounds"
    told = filter(None, [measured, untuned(), summary(rows, failed)])
    put(docs / "benchmarks.md", "servers", "\n\n".join(told))


def _rounds(rows: list[Row]) -> int:
    return len({row["round"] for row in rows})


def machine(peers: Collection[str] = ()) -> str:
    """Return on what, with what and when it was measured.

    Args:
        peers: other servers that were, by name.
    """
    told = Path("/proc/cpuinfo").read_text().splitlines()
    model, flags = (  # of a processor that is not x86 there are none
        next((line.partition(":")[2].strip() for line in told if line.startswith(what)), "")
        for what in ("model name", "flags")
    )
    best = next((name for flag, name in INSTRUCTIONS.items() if flag in flags.split()), "older")
    processor = f"{model} ({best})" if model else platform.machine()
    versions = [f"{name} {version(name)}" for name in ("torch", "openvino", "torchserve")]
    pins = [PEERS[name].packages[0].replace("==", " ") for name in PEERS if name in peers]
    software = [f"Python {platform.python_version()}", f"Java {java.version(java.home()[0])}"]
    return (
        f"{cpu_count()} cores of {processor}; "
        f"{', '.join([*software, *versions, *pins])}; {datetime.date.today().isoformat()}"
    )


def by(rows: Iterable[Row], **wanted: Any) -> dict[tuple[str, str], list[Row]]:
    """Return the rows that have these values, by server and kind."""
    found = defaultdict(list)
    for row in rows:
        if all(row.get(key) == value for key, value in wanted.items()):
            found[row["server"], row["kind"]].append(row)
    return found


def _connections(rows: list[Row]) -> list[int]:
    return sorted(
        {row["connections"] for row in rows if row["images"] == "small" and "connections" in row}
    )


def _by_connections(rows: list[Row]) -> dict[tuple[str, str], list[list[Row]]]:
    """Return of each server, by name and kind, its rows with each number of connections."""
    tables = [by(rows, images="small", connections=count) for count in _connections(rows)]
    return {server: [table[server] for table in tables] for server in tables[0]}


def _median(rows: list[Row], key: str) -> float:
    return float(median(row[key] for row in rows))


def _throughput(rows: list[Row]) -> str:
    """Return requests a second, and how many times as many ours answers."""
    counts, servers = _connections(rows), _by_connections(rows)
    head = (
        ["server", "kind"] + [f"c={c}, 1/s" for c in counts] + [f"ours, c={c}" for c in counts[-2:]]
    )
    ours = servers.get((OURS, "engine"), [[] for _ in counts])
    lines = []
    for server, tables in servers.items():
        rates = [spread([row["rate"] for row in table]) for table in tables]
        ratios = [_ratio(*pair) for pair in zip(ours[-2:], tables[-2:], strict=True)]
        lines.append([*server, *rates, *ratios])
    return table(head, lines)


def _ratio(ours: list[Row], theirs: list[Row]) -> str:
    """Return how many times as many ours answers: the median of each round's ratio."""
    rates = {row["round"]: row["rate"] for row in theirs}
    found = [row["rate"] / rates[row["round"]] for row in ours if row["round"] in rates]
    return f"{median(found):.2f}×" if found else ""


def _latency(rows: list[Row]) -> str:
    """Return p50 and p99 in milliseconds."""
    head = ["server", "kind"] + [f"c={c}, p50 / p99 ms" for c in _connections(rows)]
    lines = [
        [*server, *(f"{_median(t, 'p50'):.1f} / {_median(t, 'p99'):.1f}" for t in tables)]
        for server, tables in _by_connections(rows).items()
    ]
    return table(head, lines)


def _held(rows: list[Row]) -> str:
    """Return latencies at rates that were held, and what those who ask are capable of."""
    held = [row for row in rows if row["images"] == "held"]
    if not held:
        return ""
    rates = sorted({row["asked"] for row in held})
    lines = [
        [*server, *(_answered([row for row in found if row["asked"] == rate]) for rate in rates)]
        for server, found in by(held).items()
    ]
    head = ["server", "kind", *(f"{rate:,.0f}/s held, p50 / p99 ms" for rate in rates)]
    ceilings = [row["ceiling"] for row in held]
    return (
        f"{table(head, lines)}\n\nWho asks at a held rate would fill a core with "
        f"{min(ceilings):,.0f} to {max(ceilings):,.0f} requests a second, and takes half of them "
        f"up within {_median(held, 'late'):.1f} ms, which is part of p50."
    )


def _answered(held: list[Row]) -> str:
    """Return p50 and p99 at a rate, and how much was answered if not all was.

    Neither where whoever asks could not keep up.
    """
    if _median(held, "late") > LATE:
        return "not held"
    told = f"{_median(held, 'p50'):,.1f} / {_median(held, 'p99'):,.1f}"
    answered = mean(row["answered"] for row in held)
    return told if answered == 1 else f"{told}; {answered:.1%} answered"


def _others(rows: list[Row]) -> str:
    """Return photos, memory and the start."""
    head = ["server", "kind", "photos 1600×1200, c=8, 1/s", "memory, MB", "start, s"]
    photos = by(rows, images="photos")
    lines = [
        [
            *server,
            spread([row["rate"] for row in photos[server]]) if server in photos else "",
            spread([row["memory"] for row in found]),
            spread([row["start"] for row in found], 1),
        ]
        for server, found in by(rows, images="none").items()
    ]
    alone = [row["rate"] for row in rows if row["server"] == "in process"]
    lines.append(["the engine alone, in process", "engine", f"small: {spread(alone)}", "", ""])
    return table(head, lines)


def _share(rows: list[Row]) -> str:
    """Return which part of what the engine does alone our clients get; nothing without ours."""
    alone = median(row["rate"] for row in rows if row["server"] == "in process")
    counts = _connections(rows)
    ours = _by_connections(rows).get((OURS, "engine"), [[] for _ in counts])
    shares = [
        f"{_median(table, 'rate') / alone:.0%} at c={count}"
        for count, table in zip(counts[-2:], ours[-2:], strict=True)
        if table
    ]
    if not shares:
        return ""
    return f"Of what the engine does alone, a client of ours gets {' and '.join(shares)}."


def _failures(failed: Failures, rounds: int) -> str:
    """Return which servers have fewer rounds in the tables than are said, or none at all."""
    told = [f"{name} in {len(reasons)} of {rounds}" for name, reasons in failed.items()]
    return f"Failed in rounds, which the tables leave out: {'; '.join(told)}." if told else ""


def _scaling(rows: list[Row]) -> Figure:
    """Draw how throughput grows with connections."""
    figure, axes = _axes("connections", "answers a second")
    counts = _connections(rows)
    for server, tables in _by_connections(rows).items():
        _draw(axes, server, counts, [_median(table, "rate") for table in tables])
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, map(str, counts))
    _finish(figure, axes)
    return figure


def _frontier(rows: list[Row]) -> Figure:
    """Draw throughput against the 99th percentile of latency."""
    figure, axes = _axes("answers a second", "99th percentile of latency, ms")
    for server, tables in _by_connections(rows).items():
        rates, p99 = ([_median(table, key) for table in tables] for key in ("rate", "p99"))
        _draw(axes, server, rates, p99)
    axes.set_xscale("log")
    _finish(figure, axes)
    return figure


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    return figure, axes


def _draw(axes: Axes, server: tuple[str, str], x: list[Any], y: list[float]) -> None:
    """Draw a server's line: its name decides the colour, its kind the dashes."""
    name, kind = server
    colour = f"C{[OURS, *PEERS].index(name)}" if name in (OURS, *PEERS) else "gray"
    axes.plot(x, y, STYLES[kind], color=colour, marker="o", label=f"{name} ({kind})")


def _finish(figure: Figure, axes: Axes) -> None:
    axes.set_yscale("log")
    figure.legend(loc="outside right center", fontsize=8)
