"""The user's tool: build archives, serve them on TorchServe, and use them in Python.

- `archiving` builds archives, keeps them in the store, and loads them without a server.
- `predicting` asks a server: the clients, what they take, and what they give.
- `serving` runs TorchServe and watches over it; which versions it serves, and has served.
- `releasing` brings up new versions: compared, shadowed, promoted, and rolled back.
- The shell: `cli`, `commands`, `ui`. For all rooms: `errors`, `place`, `process`, `parallel`,
  `atomic`, `tokens`. Besides: `stubs`, for gRPC.

`releasing` imports from `serving`, and that from the first two; never the other way round.
"""

from .archiving.bundle import Classifier, load
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
from .predicting.client import AsyncClient, Client
from .predicting.prediction import Found, Picture, Prediction

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
