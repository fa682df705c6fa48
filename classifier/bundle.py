"""Load the classifier that an archive holds, without TorchServe: its own code, its own weights."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import yaml

from . import store
from .errors import ArchiveError

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np
    from numpy.typing import NDArray


class Classifier(Protocol):
    """What an archive's `model.load` gives."""

    labels: tuple[str, ...]

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 N×32×32×3 RGB pixels to float32 N×classes probabilities in [0, 1]."""

    def top(self, probabilities: NDArray[np.float32], count: int = 5) -> dict[str, float]:
        """Return the likeliest labels of one row of probabilities, likeliest first."""


def load(archive: str | Path, engine: str | None = None) -> Classifier:
    """Load the classifier that a .mar file holds.

    Several can be loaded in one process: each archive's code is imported under a name of its own.

    Args:
        archive: the file.
        engine: what runs the net; what the archive's model-config.yaml picks if None.

    Raises:
        ArchiveError: the file is missing, is no archive, or what it holds can't be loaded.
    """
    archive = Path(archive)
    with tempfile.TemporaryDirectory(prefix="classifier-") as folder:
        store.read(archive)  # finds damage, and says so
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
        return load_folder(Path(folder), str(archive), engine)


def load_folder(folder: Path, name: str, engine: str | None = None) -> Classifier:
    """Load the classifier of an unpacked archive.

    Args:
        folder: holds what an archive holds.
        name: for messages.
        engine: what runs the net; what the archive's model-config.yaml picks if None.

    Raises:
        ArchiveError: what it holds can't be loaded.
    """
    package = _import(folder / "model", name)
    try:
        return cast("Classifier", package.load(folder, engine or _engine(folder)))
    except (package.WeightsError, package.LabelsError, package.EngineError) as error:
        raise ArchiveError(f"{name}: {str(error).replace(f'{folder}/', '')}") from None


def _engine(folder: Path) -> str:
    """Return which engine the archive's model-config.yaml picks."""
    try:
        settings = yaml.safe_load((folder / "model-config.yaml").read_text())
        return str(settings["handler"]["engine"])
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return "auto"


def _import(package: Path, name: str) -> ModuleType:
    """Import an archive's package `model` under a name that only it has.

    Its modules import each other relatively, so they need not be called `model`.
    """
    identity = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        identity.update(path.read_bytes())
    alias = f"_archived_model_{identity.hexdigest()[:16]}"
    if alias in sys.modules:
        return sys.modules[alias]
    init = package / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        alias, init, submodule_search_locations=[str(package)]
    )
    if spec is None or spec.loader is None or not init.is_file():
        raise ArchiveError(f"{name} holds no package `model`: `make archive` builds one that does")
    module = sys.modules[alias] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[alias]
        raise ArchiveError(f"{name}: its code can't be imported: {error}") from error
    return module
