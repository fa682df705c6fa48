"""Commands that classify: pictures, and two versions against each other."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from tqdm import tqdm

from ..archiving import archive, bundle, store
from ..errors import PredictionError, ServerError
from ..predicting import outcomes, pictures
from ..predicting.asker import DEADLINE
from ..predicting.client import Client
from ..releasing import comparison
from ..serving import releases
from ..serving.server import Server
from . import AsJson, Html, show_comparison

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..place import Place
    from ..predicting.outcomes import Outcome, Predict, PredictEach

REFERENCE = re.compile(r"[A-Za-z][\w-]*(:[\w.]+)?")
"""A model, and perhaps a version: cifar10, cifar10:2.0, cifar10:latest."""


class Form(StrEnum):
    """How predictions are shown."""

    TEXT = "text"
    JSON = "json"
    CSV = "csv"


FORMS: dict[Form, Callable[[Outcome], str]] = {
    Form.TEXT: outcomes.as_text,
    Form.JSON: outcomes.as_json,
    Form.CSV: outcomes.as_csv,
}

Local = Annotated[
    bool, typer.Option("--local", help="Straight from the archive: no server, no Java.")
]
Url = Annotated[str | None, typer.Option("--server", help="Inference address of another server.")]
Token = Annotated[
    str | None, typer.Option(envvar="CLASSIFIER_TOKEN", help="What that server wants, if it does.")
]


def predict(
    context: typer.Context,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL[:VERSION]] IMAGE…",
            help="Files, folders, patterns, http(s) addresses; - is standard input.",
        ),
    ],
    local: Local = False,
    server: Url = None,
    token: Token = None,
    form: Annotated[Form, typer.Option("--format", help="One line for each picture.")] = Form.TEXT,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Classify pictures; exit status 1 if one has no answer: classifier predict photos/*.jpg"""
    place = context.obj
    if local and server is not None:
        raise typer.BadParameter("--local asks no server: leave one of the two out")
    if server is not None:
        reference, names = _of_another_server(images, place)
    else:
        reference, names = _split(images, _models(place), elsewhere=local)
    sources = pictures.find(names)
    form = Form.JSON if as_json else form
    predict_each = _predictor(context, reference, local, server, token).predict_each
    if form is Form.CSV:
        typer.echo(outcomes.CSV_HEAD)
    # Closed first where a reader such as `head` has gone: else what is under way is asked again.
    with contextlib.closing(outcomes.each(predict_each, sources)) as found:
        failed = _show(found, len(sources), FORMS[form])
    raise typer.Exit(1 if failed else 0)


def _show(outcomes: Iterable[Outcome], count: int, form: Callable[[Outcome], str]) -> int:
    """Show so many outcomes as they come, and then what failed; return how many did."""
    begin, failed = time.monotonic(), []
    # The bar is for terminals; disable=None asks whether there is one.
    bar = tqdm(total=count, unit=" pictures", disable=None if count > 1 else True)
    try:
        with bar:
            for outcome in outcomes:
                tqdm.write(form(outcome), file=sys.stdout)
                bar.update()
                if outcome.prediction is None:
                    failed.append(outcome)
        if count > 1:
            rate = count / (time.monotonic() - begin)
            typer.echo(f"{count:,} pictures, {rate:,.0f}/s", err=True)
    finally:  # also where the server has gone
        for outcome in failed:
            typer.echo(f"classifier: {outcome.source.name}: {outcome.error}", err=True)
    return len(failed)


def compare(
    context: typer.Context,
    old: Annotated[str, typer.Argument(help="A version, such as 1.0 or cifar10:1.0.")],
    new: Annotated[str, typer.Argument(help="Another one.")],
    data: Annotated[
        Path, typer.Option(help="Pictures: a folder, or one with a folder for each class.")
    ],
    local: Local = False,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Ask two versions the same pictures: classifier compare 1.0 2.0 --data pets/val"""
    place = context.obj
    models = _models(place)
    references = [name if ":" in name else f"{models[0]}:{name}" for name in (old, new)]
    sources = pictures.dataset(data)
    pictures.check_classes(sources, place.model_store, references)
    one, other = (_predictor(context, reference, local) for reference in references)
    found = comparison.compare(
        (references[0], references[1]),
        (one.predict, other.predict),
        sources,
        lambda: (one.hurry(), other.hurry()),
    )
    if not found.old.rate:
        raise PredictionError(
            f"{references[0]} has no answer to any picture: `classifier predict {references[0]} …` "
            "tells why"
        )
    show_comparison(found, html, as_json)


def _models(place: Place) -> list[str]:
    """Return the models that releases.toml names."""
    return [release.model for release in releases.read(place.releases)]


def _of_another_server(arguments: list[str], place: Place) -> tuple[str, list[str]]:
    """Return which model is asked for, and the pictures; releases.toml need not be there."""
    models = _models(place) if place.releases.exists() else [archive.MODEL]
    reference, names = _split(arguments, models, elsewhere=True)
    if reference.endswith(f":{store.LATEST}"):
        raise typer.BadParameter(
            f"{reference} is the newest in {place.model_store} here: name a version of that server"
        )
    return reference, names


def _split(
    arguments: list[str], models: list[str], elsewhere: bool = False
) -> tuple[str, list[str]]:
    """Return which model is asked for, and the pictures: the first argument may be either.

    A server elsewhere may have other models than those of our releases.toml.
    """
    first, *rest = arguments
    is_reference = first.partition(":")[0] in models or REFERENCE.fullmatch(first)
    if not is_reference or Path(first).exists():
        return models[0], arguments
    if not elsewhere and first.partition(":")[0] not in models:
        raise typer.BadParameter(
            f"{first} is no file, and no model of releases.toml ({', '.join(models)})"
        )
    if not rest:
        raise typer.BadParameter("name a picture, too", param_hint="IMAGE…")
    return first, rest


class _Predictor(NamedTuple):
    """What classifies one picture, and each of many.

    Attributes:
        hurry: is called when nobody waits for what is still asked.
    """

    predict: Predict
    predict_each: PredictEach
    hurry: Callable[[], object] = lambda: None


def _predictor(
    context: typer.Context,
    reference: str,
    local: bool,
    url: str | None = None,
    token: str | None = None,
) -> _Predictor:
    """Return what classifies by `model[:version]`."""
    model, _, version = reference.partition(":")
    place = context.obj
    if version == store.LATEST:
        store.find(place.model_store, reference)  # says what there is, where there is none
        version = store.versions(place.model_store, model)[-1]
    if local:
        defaults = {release.model: release.default for release in releases.read(place.releases)}
        version = version or defaults.get(model, store.LATEST)
        path = store.find(place.model_store, f"{model}:{version}")
        archived = bundle.load(path)
        return _Predictor(archived.predict, archived.predict_each)
    if url is not None:
        client = Client(url, model, token, on_retry=_told_once())
    else:
        server = Server(place)
        if server.process() is None:
            raise ServerError("TorchServe is not running: `make serve`, or --local without it")
        client = server.client(model, _told_once())
    context.call_on_close(client.close)
    return _Predictor(
        lambda image: client.predict(image, version or None),
        lambda sources: client.predict_each(sources, version or None),
        client.abandon,
    )


def _told_once() -> Callable[[str], None]:
    """Return what tells of the first failure of many, so that nobody waits without knowing why."""
    silent = iter([True])

    def tell(failure: str) -> None:
        if next(silent, False):
            typer.echo(f"classifier: {failure}: asking again, for {DEADLINE:.0f} s", err=True)

    return tell
