"""The commands of `classifier`: what they take, and what they show."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ..errors import ReleasesError, ServerError
from ..releasing import comparison
from ..releasing.comparison_page import page
from ..serving.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..releasing.comparison import Comparison

AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]


def _in_a_folder(file: Path | None) -> Path | None:
    """Return where a report goes, once its folder is there: it is written when all is done."""
    if file is not None and not os.access(file.parent, os.W_OK):
        raise typer.BadParameter(f"the folder {file.parent} is missing, or can't be written to")
    return file


Html = Annotated[
    Path | None,
    typer.Option(
        help="Write a report with the pictures.",
        dir_okay=False,
        writable=True,
        callback=_in_a_folder,
    ),
]
MOST = 20
"""Pictures that are listed at most, and kinds of changes."""


def placed(context: typer.Context) -> Server:
    """Return the server that a command is about, whether it runs or not.

    Raises:
        ReleasesError: none runs, and none could: this is another folder.
    """
    server = Server(context.obj)
    if server.process() is None and not context.obj.releases.exists():
        raise ReleasesError(f"{context.obj.releases} is missing: run this in the project's folder")
    return server


def running(context: typer.Context) -> Server:
    """Return the server that a command is about.

    Raises:
        ReleasesError: this is another folder.
        ServerError: it does not run.
    """
    server = placed(context)
    if server.process() is None:
        raise ServerError("TorchServe is not running: `make serve` starts it")
    return server


def show_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; with colours on a terminal only, and never cut off where there is none."""
    table = Table(*head, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 500
    console.print(table)


def show_comparison(found: Comparison, html: Path | None, as_json: bool) -> None:
    """Print a comparison, for people or as JSON, and write its report where one is wanted."""
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        _show(found)
    if html is not None:
        html.write_text(page(found), encoding="utf-8", errors="backslashreplace")


def _show(found: Comparison) -> None:
    head, *rows = comparison.table(found)
    show_table(head, rows)
    typer.echo(
        f"{found.pictures:,} pictures were answered by both; on {found.agreement:.2%} they agree"
    )
    if not found.differences:
        return
    head, *rows = comparison.changes(found)
    show_table(head, rows[:MOST])
    for difference in found.differences[:MOST]:
        changed = f"{difference.old.label} → {difference.new.label}"
        typer.echo(f"  {changed:<20} {difference.image}")
    if len(found.differences) > MOST:
        typer.echo(f"  and {len(found.differences) - MOST:,} more: --html FILE shows them")
