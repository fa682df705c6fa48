"""The commands of `classifier`: what they take, and what they show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def show_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; with colours on a terminal only, and never cut off where there is none."""
    table = Table(*head, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 500
    console.print(table)
