"""Load the classifier that an archive holds, without TorchServe: its own code, its own weights."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import tempfile
import threading
import traceback
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import yaml

from ..errors import ArchiveError, InputError
from ..parallel import batched, in_order
from ..place import Place
from ..predicting.prediction import Prediction, prediction_of, to_bytes
from . import store

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence
    from types import ModuleType
    from typing import TypeVar

    from numpy.typing import NDArray

    from ..predicting.prediction import Found, Picture

    P = TypeVar("P", bound=Picture)


BATCH = 64
"""Pictures of a list that are classified at once."""
DECODERS = 16
"""Threads that read and decode them: some wait for a disk or for the net."""
TOLD = ("WeightsError", "LabelsError", "EngineError")
"""Errors of our own package `model`, whose messages are for users. An archive may hold another."""
_ONE = threading.RLock()
"""Held while an archive's code is imported: another thread would find half of it."""


class Classifier:
    """What an archive holds, ready to classify: its own code, its own weights.

    Args:
        package: the archive's package `model`.
        core: what its `load` gave.
        version: of the model.
    """

    def __init__(self, package: Any, core: Any, version: str) -> None:
        self._package, self._core = package, core
        self.version = version
        self.labels: tuple[str, ...] = core.labels

    @overload
    def predict(self, pictures: Picture) -> Prediction: ...
    @overload
    def predict(self, pictures: list[P] | tuple[P, ...]) -> list[Prediction]: ...
    def predict(self, pictures: Picture | list[P] | tuple[P, ...]) -> Prediction | list[Prediction]:
        """Classify a picture, or each of a list, as the server does that runs this archive.

        Args:
            pictures: paths, bytes of image files, files open for reading bytes, PIL images, or
                uint8 H×W×3 RGB arrays.

        Raises:
            InputError: a picture is none, or can't be read.
        """
        if not isinstance(pictures, list | tuple):
            return prediction_of(*self._classify([self.decode(pictures)]))
        return list(map(prediction_of, self.predict_each(pictures)))

    def predict_each(self, pictures: Iterable[Picture]) -> Generator[Found]:
        """Classify many pictures; yield, in order, each one's prediction, or why it has none."""
        for inputs in batched(in_order(self.decode, pictures, DECODERS), BATCH):
            yield from self._classify(inputs)

    def _classify(self, inputs: Sequence[NDArray[np.uint8] | InputError]) -> Iterator[Found]:
        """Yield what came of each input; those that are pixels are classified at once."""
        pixels = [item for item in inputs if not isinstance(item, InputError)]
        rows = iter(self.probabilities(np.stack(pixels)) if pixels else ())
        for item in inputs:
            if isinstance(item, InputError):
                yield item
            else:
                yield Prediction(self.top(next(rows)), self.version)

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 N×32×32×3 RGB pixels to float32 N×classes probabilities in [0, 1]."""
        rows: NDArray[np.float32] = self._core.probabilities(pixels)
        return rows

    def top(self, probabilities: NDArray[np.float32], count: int = 5) -> dict[str, float]:
        """Return the likeliest labels of one row of probabilities, likeliest first."""
        labels: dict[str, float] = self._core.top(probabilities, count)
        return labels

    def decode(self, picture: Picture) -> NDArray[np.uint8] | InputError:
        """Return a picture's pixels, uint8 32×32×3, or why there are none."""
        try:
            pixels: NDArray[np.uint8] = self._package.decode(to_bytes(picture))
        except self._package.ImageError as error:
            return InputError(str(error))
        except InputError as error:
            return error
        return pixels


def load(archive: str | Path, engine: str | None = None) -> Classifier:
    """Load the classifier that a .mar file holds: what serves it need not run.

    Several can be loaded in one process: each archive's code is imported under a name of its own.

    Args:
        archive: the file; or `model:version` in the folder model_store, such as cifar10:latest.
        engine: what runs the net; what the archive's model-config.yaml picks if None.

    Example:
        >>> load("cifar10:latest").predict("samples/cat.jpg").label
        'cat'

    Raises:
        ArchiveError: the file is missing, is no archive, or what it holds can't be loaded.
    """
    if isinstance(archive, str) and ":" in archive and not Path(archive).exists():
        archive = store.find(Place.model_store, archive)
    archive = Path(archive)
    if archive.suffix != ".mar" and not archive.exists():
        raise ArchiveError(f"{archive} is no file: name a .mar file, or a version as in x:1.0")
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
    with _ONE:
        package = import_package(folder / "model", name)
        try:
            core = package.load(folder, engine or _engine(folder))
            return Classifier(package, core, _version(folder))
        except Exception as error:
            told = tuple(getattr(package, kind) for kind in TOLD if hasattr(package, kind))
            if isinstance(error, told):
                raise ArchiveError(f"{name}: {str(error).replace(f'{folder}/', '')}") from error
            raise ArchiveError(f"{name}: {failure(error, folder)}") from error


def _version(folder: Path) -> str:
    """Return which version the archive's manifest says it is."""
    path = folder / store.MANIFEST
    says = store.manifest({store.MANIFEST: path.read_bytes()}) if path.is_file() else {}
    return str(says.get("modelVersion", ""))


def _engine(folder: Path) -> str:
    """Return which engine the archive's model-config.yaml picks."""
    try:
        settings = yaml.safe_load((folder / "model-config.yaml").read_text())
        return str(settings["handler"]["engine"])
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return "auto"


def import_package(package: Path, name: str) -> ModuleType:
    """Import a package `model`, an archive's or the project's, under a name that only it has.

    Its modules import each other relatively, so they need not be called `model`.

    Args:
        package: its folder.
        name: for messages.

    Raises:
        ArchiveError: it isn't there, or its code fails.
    """
    with _ONE:
        return _import(package, name)


def _import(package: Path, name: str) -> ModuleType:
    identity = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        identity.update(path.read_bytes())
    alias = f"_archived_model_{identity.hexdigest()[:16]}"
    if alias in sys.modules:
        # Some modules are imported only when they are needed: from this folder, for that of an
        # earlier call may have gone.
        sys.modules[alias].__path__ = [str(package)]
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
        problem = failure(error, package.parent)
        raise ArchiveError(f"{name}: its code can't be imported: {problem}") from error
    return module


def failure(error: Exception, folder: Path) -> str:
    """Tell in a line how the code of a folder's package `model` failed, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(folder / "model")]
    where = f"{Path(own[-1].filename).relative_to(folder)}, line {own[-1].lineno}: " if own else ""
    message = re.sub(r"_archived_model_[0-9a-f]+", "model", str(error)).replace(f"{folder}/", "")
    if isinstance(error, ModuleNotFoundError):
        message += ": install it, and name it in model/requirements.txt"
    return f"{where}{type(error).__name__}: {message}"
