"""What an answer costs, and where: by part, by the image's size, by batch and by versions served.

`python -m bench.costs` measures, and writes its part of docs/benchmarks.md.
"""

from __future__ import annotations

import io
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from joblib import cpu_count
from PIL import Image
from tqdm import tqdm

import model
from classifier.archiving import archive
from handler import answer
from model import image as preprocessing
from training.arrivals import encode

from . import images, load, page, report
from .servers import BenchError, Ours

if TYPE_CHECKING:
    from collections.abc import Callable

    import psutil

SAMPLE = Path("samples/cat.jpg")
EDGES = (32, 64, 128, 256, 512, 1024, 2048, 4000)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
VERSIONS = (1, 2, 4, 8)
CONNECTIONS = 64
ROUNDS = 5
OUT = Path("run/bench/small")


def seconds(work: Callable[[], Any], least: float = 0.3) -> float:
    """Return the median of ROUNDS measurements of what a call takes."""
    work()
    begin = time.perf_counter()
    work()
    count = max(1, int(least / (time.perf_counter() - begin)))
    taken = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(count):
            work()
        taken.append((time.perf_counter() - begin) / count)
    return float(np.median(taken))


def budget(small: list[bytes]) -> str:
    """Return what a request costs all cores together, in µs, at CONNECTIONS connections."""
    bodies = images.write(small, OUT)["raw"]
    kind = images.CONTENT_TYPES["raw"]
    with Ours().running(small[0]) as running:
        load.run(running.url, bodies, kind, CONNECTIONS, 15)
        java = running.roots[0]
        family = {"Java": [java], "workers": java.children(recursive=True)}
        before = {name: _sum(processes) for name, processes in family.items()}
        found = load.run(running.url, bodies, kind, CONNECTIONS, 10)
        after = {name: _sum(processes) for name, processes in family.items()}
    rows = []
    for name in family:
        own, kernel = (
            1e6 * (b - a) / found.requests for a, b in zip(before[name], after[name], strict=True)
        )
        rows.append([f"{name}, own code", f"{own:.0f}"])
        rows.append([f"{name}, kernel", f"{kernel:.0f}"])
    rows += [[f"of the workers: {name}", f"{cost:.0f}"] for name, cost in parts(small).items()]
    cores = cpu_count()
    whole = f"{1e6 * cores / found.rate:.0f}"
    rows.append([f"{cores} cores for {found.rate:,.0f} answers a second", whole])
    return page.table(["part of a request", "µs"], rows)


def _sum(processes: list[psutil.Process]) -> tuple[float, float]:
    """Return the seconds that processes have computed: their own, and the kernel's for them."""
    times = [process.cpu_times() for process in processes]
    return sum(t.user for t in times), sum(t.system for t in times)


def parts(small: list[bytes], batch: int = 16) -> dict[str, float]:
    """Return what the parts of our code cost for each request of a batch, in µs, one thread."""
    classifier = model.load("model", threads=1)
    files = small[:batch]
    pixels = np.stack([model.decode(file) for file in files])
    rows = classifier.probabilities(pixels)
    work = {
        "decode": lambda: [model.decode(file) for file in files],
        "classify": lambda: classifier.probabilities(pixels),
        "label and write JSON": lambda: [answer.ok(classifier.top(row)) for row in rows],
    }
    return {name: 1e6 * seconds(call) / batch for name, call in work.items()}


def by_size() -> str:
    """Return what decoding costs by the image's size, ours and in full by Pillow, in ms."""
    photo = Image.open(SAMPLE).convert("RGB")
    rows = []
    for edge in tqdm(EDGES, desc="sizes"):
        row = [f"{edge}×{edge}"]
        for kind, options in (("JPEG", {"quality": 90}), ("PNG", {})):
            file = encode(np.asarray(photo.resize((edge, edge))), kind, **options)
            ours, full = (seconds(partial(decode, file)) for decode in (model.decode, _in_full))
            row += [f"{1e3 * ours:.3f}", f"{1e3 * full:.3f}", f"{full / ours:.1f}×"]
        rows.append(row)
    head = ["image", "JPEG, ours", "in full", "", "PNG, ours", "in full", ""]
    return page.table(head, rows)


def _in_full(data: bytes) -> np.ndarray[Any, Any]:
    """Decode as tutorials do."""
    return preprocessing.resize(Image.open(io.BytesIO(data)))


def by_batch() -> str:
    """Return what an image costs the engine, in µs, by the size of the batch."""
    engines = [model.load("model", kind, threads=1) for kind in ("openvino", "torch")]
    rows = []
    for batch in tqdm(BATCHES, desc="batches"):
        pixels = np.zeros((batch, 32, 32, 3), np.uint8)
        costs = [1e6 * seconds(partial(engine.probabilities, pixels)) / batch for engine in engines]
        rows.append([str(batch), *(f"{cost:,.0f}" for cost in costs)])
    return page.table(["batch", "8-bit integers (OpenVINO), µs", "float32 (torch), µs"], rows)


def by_versions(small: list[bytes]) -> str:
    """Return what further versions cost that are served, a worker each, but not asked."""
    bodies = images.write(small, OUT)["raw"]
    rows = []
    for count in tqdm(VERSIONS, desc="versions"):
        with Ours(settings={"workers": 1, "threads": 2}, versions=count).running(small[0]) as it:
            load.run(it.url, bodies, images.CONTENT_TYPES["raw"], CONNECTIONS, 8)
            found = load.run(it.url, bodies, images.CONTENT_TYPES["raw"], CONNECTIONS, 6)
            costs = [f"{found.rate:,.0f}", f"{it.memory():,.0f}", f"{it.seconds:.1f}"]
            rows.append([str(count), *costs])
    return page.table(["versions", "answers a second", "memory, MB", "start, s"], rows)


def main() -> int:
    """Measure all, and write it."""
    small = images.small()
    try:
        sections = {
            "What a request costs": budget(small),
            "By the image's size: decoding, ms, one thread": by_size(),
            "By batch: the engine, µs for each image, one thread": by_batch(),
            f"By versions: one worker of two threads each, {archive.MODEL} 1.0 asked": by_versions(
                small
            ),
        }
    except (BenchError, load.LoadError) as error:
        print(f"bench.costs: {error}", file=sys.stderr)
        return 1
    text = "\n\n".join(f"### {title}\n\n{table}" for title, table in sections.items())
    page.put(Path("docs/benchmarks.md"), "costs", f"{report.machine()}\n\n{text}")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
