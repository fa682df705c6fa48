"""The command for the browser."""

from __future__ import annotations

import os
import socket
import webbrowser
from typing import Annotated

import typer

from ..errors import ServerError
from . import running

LOOPBACK = ("127.0.0.1", "localhost")


def ui(
    context: typer.Context,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8090,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Serve a page to try pictures, and the API's description: classifier ui --open"""
    try:
        import uvicorn

        from ..ui.app import build
    except ImportError as error:  # where only what serving needs is installed, as in a container
        raise ServerError(
            f"the pages need the package {error.name}: `pip install -r requirements.txt`"
        ) from None
    server = running(context)
    try:
        listener = socket.create_server((LOOPBACK[0], port))
    except OSError as error:
        raise ServerError(
            f"port {port} can't be used ({error.strerror}): choose another by --port"
        ) from None
    url = f"http://{LOOPBACK[0]}:{listener.getsockname()[1]}"
    typer.echo(f"{url}  (the API is at {url}/docs; Ctrl-C ends it)")
    if open_ and not _open(url):
        typer.echo("No browser can be opened here: open the address yourself", err=True)
    app = build(server, list(LOOPBACK))
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def _open(url: str) -> bool:
    """Open the browser, if there is a screen: one for a terminal would wait for us, and we for it.

    Who asks before the application runs is answered when it does.
    """
    has_screen = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    return has_screen and webbrowser.open(url)
