"""The user's tool: build archives, serve them on TorchServe, and use them in Python.

in Python   client, asker, tokens: a server's answers · bundle: an archive's own
prediction, pictures, predict, parallel: what goes in, and what comes out
archives    archive, store · releases, history: which are served, and which were
a server    server, launch, config, java, place, process, log · warmup, answered
monitor, readiness, foreground, follow: who watches it
releasing   management, rollout, promotion, shadow, comparison, comparison_page, listing
the shell   cli, commands, ui
besides     stubs: gRPC · atomic, errors
"""

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
