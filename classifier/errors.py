"""Failures that a user can mend. The command prints them as one line, without a traceback.

ClassifierError
├── ArchiveError    an archive can't be built or read
├── ReleasesError   releases.toml says what can't be
└── ServerError     TorchServe does not run as it should
"""


class ClassifierError(Exception):
    """An expected failure; its message says what is wrong and what to do."""


class ArchiveError(ClassifierError):
    """An archive can't be built, read or found."""


class ReleasesError(ClassifierError):
    """releases.toml is missing or says what can't be."""


class ServerError(ClassifierError):
    """TorchServe does not start, stop or serve as it should."""
