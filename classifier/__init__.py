"""The user's tool: build archives, serve them on TorchServe, and use them in Python."""

from .bundle import Classifier, load
from .errors import ArchiveError, ClassifierError, ReleasesError, ServerError

__all__ = [
    "ArchiveError",
    "Classifier",
    "ClassifierError",
    "ReleasesError",
    "ServerError",
    "load",
]
