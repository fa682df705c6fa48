"""Answers in the form that TorchServe sends: a status, its phrase and a JSON body."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson


@dataclass(frozen=True)
class Answer:
    """One request's answer; the body is JSON."""

    status: HTTPStatus
    body: bytes


def ok(value: Any, indent: bool = True) -> Answer:
    """Answer with a JSON value, laid out as TorchServe does, or in one line."""
    return Answer(HTTPStatus.OK, _json(value, indent))


def error(status: HTTPStatus, message: str) -> Answer:
    """Answer with an error in TorchServe's own form."""
    kind = status.phrase.title().replace(" ", "") + "Exception"
    body = {"code": int(status), "type": kind, "message": message}
    return Answer(status, _json(body))


def _json(value: Any, indent: bool = True) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_INDENT_2 if indent else None)
    except orjson.JSONEncodeError:  # half an emoji of a client's text, which UTF-8 has not
        text = json.dumps(value, ensure_ascii=False, indent=2 if indent else None)
        # Escaped is that alone: a long text must not become longer than a worker may answer.
        return text.encode(errors="backslashreplace")
