"""The command `classifier`: a thin shell over the package's functions."""

from __future__ import annotations

import io
import sys
from pathlib import Path  # noqa: TC003, for typer reads it from the annotations
from typing import Annotated

import httpx
import typer

from . import process
from .commands import browsing, predicting, releasing, serving
from .errors import ClassifierError
from .place import Place

app = typer.Typer(
    name="classifier",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def project(
    context: typer.Context,
    run: Annotated[
        Path, typer.Option(help="Folder of the server's generated state and logs.")
    ] = Place.run,
    store: Annotated[Path, typer.Option(help="Folder of the archives.")] = Place.model_store,
    releases: Annotated[
        Path, typer.Option(help="Which versions are served, and which by default.")
    ] = Place.releases,
    config: Annotated[
        Path, typer.Option(help="TorchServe's configuration, without what it serves.")
    ] = Place.config,
) -> None:
    """Put a trained image classifier into production on TorchServe."""
    context.obj = Place(run, store, releases, config)


for command in (
    serving.archive,
    serving.rehearse,
    serving.serve,
    serving.stop,
    serving.status,
    serving.ready,
    serving.logs,
    serving.token,
    predicting.predict,
    predicting.compare,
    releasing.models,
    releasing.shadow,
    releasing.promote,
    releasing.rollback,
    releasing.history,
    browsing.ui,
):
    app.command()(command)


def main() -> None:
    """Run the command; expected failures become one line."""
    process.end_in_order()
    # A file's name may be no text: it is shown as JSON and Python would write it.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except (ClassifierError, httpx.HTTPError, OSError) as error:
        print(f"classifier: {error}", file=sys.stderr)
        sys.exit(1)
