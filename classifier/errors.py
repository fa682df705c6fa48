"""Failures that a user can mend. The command prints them as one line, without a traceback.

ClassifierError
├── ArchiveError        an archive can't be built or read
├── ReleasesError       releases.toml says what can't be
├── ServerError         TorchServe does not run as it should
└── PredictionError     a picture gets no prediction
    ├── InputError          it is none, or the server refuses it: asking again is of no use
    ├── TokenError          the server wants a token, and this one is missing, wrong or expired
    └── UnavailableError    no answer came in time, however often it was asked for
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx


class ClassifierError(Exception):
    """An expected failure; its message says what is wrong and what to do."""


class ArchiveError(ClassifierError):
    """An archive can't be built, read or found."""


class ReleasesError(ClassifierError):
    """releases.toml is missing or says what can't be."""


class ServerError(ClassifierError):
    """TorchServe does not start, stop or serve as it should."""


class PredictionError(ClassifierError):
    """A picture gets no prediction.

    Attributes:
        status: the HTTP status of the server's answer; None where it gave none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class InputError(PredictionError):
    """What was given is no picture that can be classified, or names no model that is served."""


class TokenError(PredictionError):
    """The server wants a token, and what it got is missing, wrong or expired."""


class UnavailableError(PredictionError):
    """The server gave no answer in time, or failed in a way that asking again does not mend."""


def error_of(answer: httpx.Response) -> tuple[str, str]:
    """Return the type and the message of an error, in TorchServe's form or any other."""
    try:
        body = answer.json()
        return str(body["type"]), str(body["message"])
    except (ValueError, KeyError, TypeError):
        text = " ".join(answer.text.split())[:200]
        return "", text or answer.reason_phrase
