"""Commands that build, start, stop and watch."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..archiving import archive as archives
from ..archiving.store import sha256
from ..errors import ClassifierError, ServerError
from ..place import Place
from ..serving import foreground as in_foreground
from ..serving import log, monitor
from ..serving.rehearsal import rehearse as rehearse_start
from ..serving.server import Server
from ..tokens import Kind
from . import AsJson, placed, running

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLE = Path("samples/cat.jpg")


def archive(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Name under which it is served.")] = archives.MODEL,
    version: Annotated[str, typer.Option(help="Version, by PEP 440.")] = archives.VERSION,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="safetensors, or a state dict (.pth); if absent, the released ones, or "
            "what `make train` made under another name."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build an archive: classifier archive --version 2.0 --weights net.pth"""
    weights = weights or archives.default_weights(model)
    promoted = Server(context.obj).promoted(model, version)
    path = archives.build(model, version, weights, context.obj.model_store, promoted=promoted)
    if as_json:
        told = {"archive": str(path), "model": model, "version": version}
        typer.echo(json.dumps({**told, "size": path.stat().st_size, "sha256": sha256(path)}))
    else:
        typer.echo(path)


def rehearse(context: typer.Context) -> None:
    """Run TorchServe once, so that it is fast sooner from then on: classifier rehearse"""
    _build(Server(context.obj))
    typer.echo("Letting Java note what TorchServe runs, once: half a minute.")
    typer.echo(rehearse_start(context.obj))


def serve(
    context: typer.Context,
    foreground: Annotated[
        bool,
        typer.Option(
            "--foreground",
            help="Stay until TorchServe ends, or a signal (SIGTERM, SIGINT, SIGHUP) stops it as "
            "`classifier stop` does. Builds nothing, and shows no prediction.",
        ),
    ] = False,
    grace: Annotated[
        float, typer.Option(min=0, help="In the foreground: as that of `classifier stop`.")
    ] = 0,
) -> None:
    """Start TorchServe in the background and show a first prediction: classifier serve"""
    server = Server(context.obj)
    if foreground:
        _serve_in_foreground(server, grace)
        return
    if grace:
        raise typer.BadParameter("--grace goes with --foreground, or with `classifier stop`")
    with server.lock():
        if server.process() is not None:
            server.check()
            released = archives.released_in(server.place.model_store)
            if _serves_released(server) and archives.is_outdated(released):
                raise ServerError(
                    "the server runs older code or weights: `make stop` and `make serve`"
                )
            typer.echo("TorchServe is up already.")
        else:
            _build(server)
            typer.echo("Starting TorchServe …")
            server.start()
    _show(server)


def _serve_in_foreground(server: Server, grace: float) -> None:
    typer.echo("Starting TorchServe …")
    in_foreground.run(server, grace, started=lambda: _show_served(server))
    typer.echo("TorchServe has stopped.")


def stop(
    context: typer.Context,
    grace: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds in which it says that it is not ready, but still answers: what a "
            "load balancer takes to notice.",
        ),
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Stop what `classifier serve` started, its queue answered: classifier stop --grace 5"""
    server = placed(context)
    with server.lock():
        stopped = server.stop(grace)
    if as_json:
        typer.echo(json.dumps({"stopped": stopped}))
    else:
        typer.echo("TorchServe has stopped." if stopped else "TorchServe was not running.")


def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Tell whether the server serves what is released; exit status 1 if not: classifier status"""
    server = placed(context)
    problem = None
    if server.process() is None:
        problem = "TorchServe is not running."
    else:
        try:
            server.check()
        except ClassifierError as error:
            if not as_json:
                raise
            problem = str(error)
    if as_json:
        told = [asdict(release) for release in server.releases]
        typer.echo(json.dumps({"problem": problem, "url": server.inference, "released": told}))
    elif problem:
        typer.echo(problem)
    else:
        _show_served(server)
    raise typer.Exit(1 if problem else 0)


def ready(context: typer.Context, as_json: AsJson = False) -> None:
    """Tell whether each version answers; exit status 1 if not: classifier ready"""
    reasons = Server(context.obj).unready()
    if as_json:
        typer.echo(json.dumps({"ready": not reasons, "reasons": reasons}))
    else:
        typer.echo("ready" if not reasons else f"not ready: {'; '.join(reasons)}")
    raise typer.Exit(1 if reasons else 0)


def logs(
    context: typer.Context,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the last.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show new ones, too.")] = False,
) -> None:
    """Show the end of TorchServe's log, and of the monitor's: classifier logs -f"""
    folder = context.obj.logs
    files = [path for path in (folder / log.FILE, folder / monitor.LOG) if path.exists()]
    if not files:
        raise ServerError(f"{folder} holds no logs: nothing was started")
    command = ["tail", f"--lines={lines}", *(["--follow=name"] if follow else []), *map(str, files)]
    with contextlib.suppress(KeyboardInterrupt):
        subprocess.run(command, check=False)


def token(
    context: typer.Context,
    kind: Annotated[Kind, typer.Argument(help="Which API it is for.")] = Kind.INFERENCE,
    as_json: AsJson = False,
) -> None:
    """Print the token that a server wants, a new one if need be: classifier token management"""
    current = running(context).token(kind)
    if current is None:
        raise ServerError("this server wants no tokens (disable_token_authorization)")
    typer.echo(json.dumps({"kind": kind, "token": current()}) if as_json else current())


def _build(server: Server) -> None:
    """Build the archive of the released weights, if it is to be served and older or missing."""
    if _serves_released(server) and (built := archives.refresh(server.place.model_store)):
        typer.echo(f"Built {built}")


def _serves_released(server: Server) -> bool:
    """Tell whether the released weights are to be served."""
    return any(
        r.model == archives.MODEL and archives.VERSION in r.versions for r in server.releases
    )


def _show_served(server: Server) -> None:
    for release in server.releases:
        versions = ", ".join(
            f"{v} (default)" if v == release.default else v for v in release.versions
        )
        typer.echo(f"{release.model} {versions} at {server.inference}/predictions/{release.model}")


def _show(server: Server) -> None:
    """Show what is served, a first prediction, and what to try next."""
    _show_served(server)
    for release in server.releases:
        with server.client(release.model) as client:
            prediction = client.predict(SAMPLE)
        typer.echo(f"\n{SAMPLE}, as {release.model} sees it:")
        width = max(10, *map(len, prediction.probabilities))
        for label, probability in prediction.probabilities.items():
            typer.echo(f"  {label:<{width}} {probability:6.1%}")
    typer.echo("\nTry next:")
    for line in _try_next(server):
        typer.echo(f"  {line}")


def _try_next(server: Server) -> Iterator[str]:
    """Yield commands that ask this very server."""
    model, run = server.releases[0].model, server.place.run
    is_default = run == Place.run
    command = ".venv/bin/classifier" + ("" if is_default else f" --run {shlex.quote(str(run))}")

    def curl(kind: Kind) -> str:
        if server.token(kind) is None:
            return "curl"
        return f'curl -H "Authorization: Bearer $({command} token {kind})"'

    yield f"{curl(Kind.INFERENCE)} -T {SAMPLE} {server.inference}/predictions/{model}"
    yield f"{curl(Kind.MANAGEMENT)} {server.management.url}/models/{model}/all"
    yield f"{command} ui --open"
    yield "make stop" if is_default else f"{command} stop"
