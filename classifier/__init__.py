"""The user's tool: build archives, serve them on TorchServe, and use them in Python.

- In Python: `client`, `asker` and `tokens` for a server's answers, `bundle` for an archive's own;
  `prediction`, `pictures`, `outcomes` and `parallel` for what goes in and comes out.
- Archives: `archive`, `store`; `releases` and `history` say which are served, and which were.
- A server: `server`, `state`, `launch`, `config`, `ports`, `java`, `place`, `process`, `log`,
  `warmup`, `rehearsal`, `answered`; `monitor`, `readiness`, `foreground` and `follow` watch it.
- Releasing: `management`, `rollout`, `promotion`, `journal`, `shadow`, `comparison`,
  `comparison_page`, `listing`.
- The shell: `cli`, `commands`, `ui`. Besides: `stubs` for gRPC, `atomic`, `errors`.
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
