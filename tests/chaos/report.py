"""docs/resilience.md: the last results of the long forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil

from bench import report

DOCUMENT = Path("docs/resilience.md")
BEGIN, END = "<!-- results: make chaos LONG=1 -->", "<!-- end of results -->"


def write(results: dict[str, dict[str, Any]]) -> None:
    """Put results, by trial, into the document's table; the rest of it stays."""
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{table(results)}\n{machine()}\n\n{END}{after}")


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return results as a Markdown table: a row for each figure."""
    rows = [["trial", "date", "figure", "value"], ["---"] * 4]
    for trial, found in results.items():
        figures = {name: value for name, value in found.items() if name != "date"}
        for number, (name, value) in enumerate(figures.items()):
            head = [trial, found["date"]] if number == 0 else ["", ""]
            rows.append([*head, name, f"{value:,}" if isinstance(value, int) else str(value)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def machine() -> str:
    """Return on what, with what and when they were found, in words."""
    memory = psutil.virtual_memory().total / 2**30
    return f"{report.machine()}; {memory:.0f} GB, shared by the server and its clients; n = 1."
