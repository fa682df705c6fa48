"""Commands that release: what there is, what becomes the default, and what has been."""

from __future__ import annotations

import json
import re
import signal
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from .. import process
from ..archiving import store
from ..errors import ServerError
from ..releasing import listing, promotion
from ..releasing import shadow as shadows
from ..serving import history as histories
from ..serving.server import Server
from . import AsJson, Html, running, show_comparison, show_table

Model = Annotated[str, typer.Option(help="Whose default changes; the first of releases.toml.")]
Data = Annotated[
    Path | None, typer.Option(help="Pictures in a folder for each class: accuracy decides.")
]
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
"""Units of a duration, in seconds."""


def models(context: typer.Context, as_json: AsJson = False) -> None:
    """Show what the store holds and what the server serves: classifier models"""
    rows = listing.rows(Server(context.obj))
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    head = (
        "model",
        "version",
        "default",
        "workers ready",
        "accuracy",
        "size",
        "sha256",
        "released",
    )
    show_table(head, map(listing.cells, rows))


def _seconds(text: str) -> float:
    """Return the seconds of a duration such as 60s, 5m, 1.5h or 90."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    seconds = float(found[1]) * UNITS[found[2]] if found else 0
    if seconds <= 0:
        raise typer.BadParameter(f"{text!r} is no duration: write 60s, 5m or 1h")
    return seconds


def _named(server: Server, reference: str, model: str = "") -> tuple[str, str]:
    """Return the model and version that 2.0 or cifar10:2.0 means; the model may be given, too.

    Raises:
        ArchiveError: the version is none: TorchServe would take no version for the default.
    """
    named, _, version = reference.rpartition(":")
    if named and model and named != model:
        raise typer.BadParameter(f"{reference} is no version of {model}")
    return named or model or server.releases[0].model, store.check_version(version)


def shadow(
    context: typer.Context,
    new: Annotated[str, typer.Argument(help="A version, such as 2.0 or cifar10:2.0.")],
    seconds: Annotated[
        float, typer.Option("--for", parser=_seconds, metavar="TIME", help="60s, 5m or 1h.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Pictures to ask over and over; if absent, real requests, as the server keeps "
            "them (`keep` in releases.toml)."
        ),
    ] = None,
    rate: Annotated[
        float, typer.Option(min=0.01, max=1000, help="Of --data, pictures a second.")
    ] = shadows.RATE,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Repeat traffic to a version, its answers unused: classifier shadow 2.0 --for 60s"""
    server, tell = running(context), partial(tqdm.write, file=sys.stderr)
    model, version = _named(server, new)
    traffic = shadows.traffic(server, model, version, seconds, data, rate)
    # All that ends it leaves nothing behind, and shows what was found, as Ctrl-C does.
    process.end_in_order(lambda number: signal.default_int_handler(number, None))
    with tqdm(unit=" pictures", disable=None) as bar:  # where there is a terminal
        one = shadows.Shadow(server, model, version, traffic, tell, bar.update)
        found = one.run()
    if found is None:
        raise ServerError("no picture came: nothing was asked")
    for name, reason in one.reasons.items():
        tell(f"{name} failed, first with: {reason}")
    if one.left_out:
        tell(f"{one.left_out:,} pictures were left out: {shadows.AT_ONCE} others were under way")
    show_comparison(found, html, as_json)


def promote(
    context: typer.Context,
    version: Annotated[
        str, typer.Argument(help="What becomes the default, such as 2.0 or cifar10:2.0.")
    ],
    model: Model = "",
    data: Data = None,
    tolerance: Annotated[
        float, typer.Option(min=0, max=1, help="By how much it may be right less often.")
    ] = promotion.TOLERANCE,
    probes: Annotated[
        int, typer.Option(min=1, help="Requests after the switch; each must be right.")
    ] = promotion.PROBES,
    watch: Annotated[
        float,
        typer.Option(min=0, help="Seconds before the switch, and after it: failures may not rise."),
    ] = promotion.WATCH,
    other_labels: Annotated[
        bool, typer.Option("--other-labels", help="It may have other labels than the default.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a version, make it the default, watch, keep it: classifier promote 2.0 --data val"""
    server = running(context)
    sources = promotion.checks(data)
    model, version = _named(server, version, model)
    entry = promotion.Promotion(
        server,
        model,
        version,
        sources,
        tolerance,
        probes,
        watch,
        partial(typer.echo, err=as_json),
        other_labels,
    ).run()
    _show(entry, "is the default; `classifier rollback` goes back", as_json)


def rollback(context: typer.Context, model: Model = "", as_json: AsJson = False) -> None:
    """Make the version before the default again: classifier rollback"""
    server = running(context)
    model = model or server.releases[0].model
    release = server.release(model)
    entries = histories.read(context.obj.history)
    before = histories.before_last(entries, model, release.default)
    if before is None:
        raise ServerError(f"{context.obj.history} knows no default of {model} before this one")
    entry = promotion.Promotion(
        server,
        model,
        before,
        promotion.checks(None),
        watch=0,  # whoever goes back is in a hurry
        tell=partial(typer.echo, err=as_json),
        action="rollback",
    ).run()
    _show(entry, "is the default again", as_json)


def _show(entry: histories.Entry, what: str, as_json: bool) -> None:
    """Tell what a promotion has come to; its steps were told before, on stderr where it's JSON."""
    if as_json:
        typer.echo(json.dumps(asdict(entry), indent=2))
    else:
        typer.echo(f"{entry.model}:{entry.after} {what}")


def history(context: typer.Context, as_json: AsJson = False) -> None:
    """Show who released what, when: classifier history"""
    entries = histories.read(context.obj.history)
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in entries], indent=2))
        return
    head = ("when", "who", "what", "model", "from", "to", "right, before and after", "agreement")
    show_table(head, map(_cells, entries))


def _cells(entry: histories.Entry) -> tuple[str, ...]:
    sides = [entry.figures.get(side, {}).get("accuracy") for side in ("old", "new")]
    right = "–" if None in sides else ", ".join(f"{value:.2%}" for value in sides)
    agreement = entry.figures.get("agreement")
    agreed = "–" if agreement is None else f"{agreement:.2%}"
    told = (entry.when, entry.who, entry.action, entry.model, entry.before, entry.after)
    return (*told, right, agreed)
