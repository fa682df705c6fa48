"""The user's tool: build archives, serve them on TorchServe, and use them in Python."""

from .bundle import Classifier, load
from .client import AsyncClient, Client
from .errors import (
    ArchiveError,
    ClassifierError,
    InputError,
    PredictionError,
    ReleasesError,
    ServerError,
    TokenError,
    UnavailableError,
)
from .prediction import Found, Picture, Prediction

__all__ = [
    "ArchiveError",
    "AsyncClient",
    "Classifier",
    "ClassifierError",
    "Client",
    "Found",
    "InputError",
    "Picture",
    "Prediction",
    "PredictionError",
    "ReleasesError",
    "ServerError",
    "TokenError",
    "UnavailableError",
    "load",
]
