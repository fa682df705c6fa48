"""The ASGI application of `classifier ui`: pages, and the API that they ask, at one address.

    /                   the page for people
    /docs               the Swagger page, over /openapi.json
    /served, /samples   what is served, and pictures to try
    all other paths     those of the description, passed on to TorchServe

Who can reach it asks with the server's own token. So it keeps other sites' pages out: it answers
under no other name than its own, sends no CORS headers, and refuses what such a page posts.
"""

from __future__ import annotations

import contextlib
from functools import partial
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import httpx
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ..errors import ClassifierError, InputError
from ..predicting import pictures
from ..releasing import listing
from . import openapi

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from ..predicting.pictures import Source
    from ..serving.server import Server

STATIC = Path(__file__).with_name("static")
SAMPLES = Path("samples")
TIMEOUT = 120.0
"""Seconds that an answer may take; the first explanation of a worker is the slowest."""
MOST_BYTES = 6_553_500
"""What TorchServe takes where its configuration does not tell otherwise (max_request_size)."""
DOTS = {".", ".."}
FOREIGN = "another site's page may not ask"
PASSED_ON = ("content-type", "x-model-version", "x-batch-size", "x-request-id")
"""Headers of an answer that reach the browser."""
GUARDS = {
    # What a page may load: nothing from elsewhere. Swagger's page has styles of its own.
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",
}
"""Headers of each answer, which keep a browser from doing more than the pages need."""


class Interface:
    """What the pages ask of one server."""

    def __init__(self, server: Server, samples: Path = SAMPLES) -> None:
        self._server = server
        found = [Path(source.name) for source in _found(samples)]
        self._samples = {path.name: path for path in found}
        self._http = httpx.AsyncClient(
            base_url=server.inference, auth=server.auth(), timeout=TIMEOUT, trust_env=False
        )

    def served(self, _: Request) -> Response:
        """Tell what is served."""
        told = [
            {"name": model.name, "default": model.default, "versions": model.versions}
            for model in listing.served(self._server)
        ]
        return JSONResponse(told)

    def samples(self, _: Request) -> Response:
        """Tell which pictures there are to try."""
        return JSONResponse(sorted(self._samples))

    def sample(self, request: Request) -> Response:
        """Send one of them."""
        path = self._samples.get(request.path_params["name"])
        if path is None:
            raise HTTPException(404, "there is no such sample")
        return FileResponse(path)

    def description(self, _: Request) -> Response:
        """Send the API's description, with what is served now."""
        served = listing.served(self._server)
        return JSONResponse(openapi.describe(served, self._samples.values()))

    async def forward(self, template: str, request: Request) -> Response:
        """Pass a request on to TorchServe, and its answer back.

        Args:
            template: the path as it is described, with names in braces.
            request: one that fits it.
        """
        names = {name: quote(value, safe="") for name, value in request.path_params.items()}
        if DOTS.intersection(names.values()):  # they would lead to other paths
            raise HTTPException(404, "there is no such path")
        path, body = template.format(**names), await request.body()
        kind = {"Content-Type": request.headers.get("content-type", "")}
        answer = await self._http.request(request.method, path, content=body, headers=kind)
        kept = {name: answer.headers[name] for name in PASSED_ON if name in answer.headers}
        return Response(answer.content, answer.status_code, kept)

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Close the connections in the end."""
        async with self._http:
            yield


def _found(samples: Path) -> list[Source]:
    """Return the pictures of a folder; none where there is none, or it holds none."""
    try:
        return pictures.find([str(samples)])
    except InputError:
        return []


def build(server: Server, hosts: list[str], samples: Path = SAMPLES) -> ASGIApp:
    """Return the application.

    Args:
        server: a running one.
        hosts: the names under which it answers.
        samples: a folder of pictures to try.
    """
    interface = Interface(server, samples)
    swagger = files("swagger_ui") / "static"
    routes = [
        Route("/", lambda _: FileResponse(STATIC / "index.html")),
        Route("/docs", lambda _: FileResponse(STATIC / "docs.html")),
        Route("/served", interface.served),
        Route("/samples", interface.samples),
        Route("/samples/{name}", interface.sample),
        Route("/openapi.json", interface.description),
        Mount("/static", StaticFiles(directory=STATIC)),
        Mount("/swagger", StaticFiles(directory=str(swagger))),
        *(
            Route(path, partial(interface.forward, path), methods=_methods(operations))
            for path, operations in openapi.describe([])["paths"].items()
        ),
    ]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
        ],
        exception_handlers={
            HTTPException: _refuse,
            httpx.TransportError: _fail,
            ClassifierError: _fail,
        },
        lifespan=interface.lifespan,
        max_body_size=int(server.properties.get("max_request_size", MOST_BYTES)),
    )
    return _Guard(app)


def _methods(operations: Iterable[str]) -> list[str]:
    """Return the HTTP methods of a path: TorchServe takes PUT where it takes POST."""
    methods = [operation.upper() for operation in operations]
    return [*methods, "PUT"] if "POST" in methods else methods


class _Guard:
    """Puts GUARDS into each answer, and refuses what another site's page posts."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(GUARDS)
            await send(message)

        app = _error(403, FOREIGN) if _is_foreign(scope) else self._app
        await app(scope, receive, guarded)


def _is_foreign(scope: Scope) -> bool:
    """Tell whether another site's page sends this, to do more than read."""
    if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
        return False
    headers = Headers(scope=scope)
    own = f"http://{headers.get('host')}"
    site = headers.get("sec-fetch-site", "same-origin")
    return headers.get("origin", own) != own or site not in ("same-origin", "none")


def _refuse(_: Request, error: Exception) -> Response:
    """Answer an error in TorchServe's form."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _error(status, str(getattr(error, "detail", error)))


def _fail(_: Request, error: Exception) -> Response:
    """Say that TorchServe does not answer, or refuses."""
    return _error(502, f"TorchServe gives no answer: {error or type(error).__name__}")


def _error(status: int, message: str) -> Response:
    kind = HTTPStatus(status).phrase.title().replace(" ", "") + "Exception"
    body = {"code": status, "type": kind, "message": message}
    return JSONResponse(body, status)
