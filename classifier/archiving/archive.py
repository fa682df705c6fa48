"""Build a model archive: what the model is and how TorchServe serves it, in one .mar file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from .. import atomic
from ..errors import ArchiveError, InputError
from . import bundle, store

TRAVELS = (
    "handler/__init__.py",
    "handler/answer.py",
    "handler/explanation.py",
    "handler/keep.py",
    "handler/metrics.py",
    "handler/question.py",
    "handler/torchserve.py",
    "model/__init__.py",
    "model/classifier.py",
    "model/codecs.py",
    "model/engine.py",
    "model/engine_openvino.py",
    "model/engine_torch.py",
    "model/explanation.py",
    "model/image.py",
    "model/net.py",
    "model/weights.py",
)
"""The code that travels, besides the handler itself and what else lies in model/. A worker imports
nothing else of ours."""
HANDLER = "handler/classifier_handler.py"
START = "handler/sitecustomize.py"
"""What Python runs first in a worker."""
LABELS = f"model/{store.LABELS}"
CONFIG = "model/model-config.yaml"
REQUIREMENTS = "model/requirements.txt"
WEIGHTS = "model/weights.safetensors"
_WEIGHTS = Path(WEIGHTS).name
INT8 = ("int8.xml", "int8.bin")
"""The net in 8-bit integers, beside the weights: OpenVINO's graph and its constants."""

MODEL, VERSION = "cifar10", "1.0"
"""What is built where nothing else is asked for: the name and version of the released weights."""

RELEASED = {"weights": "released"}
"""What the manifest's extensions say of an archive of the released weights."""

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every member: the earliest that a zip file can tell, so that bytes repeat."""
CREATED_ON = "01/01/1980 00:00:00"

WRAPPERS = ("state_dict", "model_state_dict")
"""Under which of these a checkpoint holds the state dict: Lightning's, and that of torch's docs."""
PREFIXES = ("_orig_mod.", "module.")
"""What torch.compile and DataParallel put before a parameter's name."""
REMEDY = (
    "write one by torch.save(net.state_dict(), PATH); a checkpoint may hold it under "
    + " or ".join(WRAPPERS)
)
MODEL_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
"""What torch-model-archiver takes."""


def build(
    model: str,
    version: str,
    weights: Path,
    target: Path,
    project: Path = Path(),
    promoted: str | None = None,
) -> Path:
    """Build an archive; one that is there is replaced only when the new one is whole.

    Args:
        model: the name under which TorchServe serves it.
        version: by PEP 440.
        weights: a safetensors file, or a state dict saved by torch (.pth, .pt). A lock beside it
            (the same name with .lock) is checked; the released weights must have one. Labels
            beside it (index_to_name.json) travel in the place of the project's.
        target: the folder for the archive: the model store.
        project: the folder that holds handler/ and model/.
        promoted: the sha256 that the archive must have, for one that was promoted; None: any.

    Returns:
        The archive's path.

    Raises:
        ArchiveError: a file is missing, the weights don't fit the net or their lock, the net or the
            preprocessing fails, or another archive of that version was promoted.
    """
    store.check_version(version)
    if not re.fullmatch(MODEL_NAME, model):
        raise ArchiveError(f"{model!r} is no name of a model: write letters, digits, -, _ and .")
    released = weights.resolve() == (project / WEIGHTS).resolve()
    found = read_weights(weights, must_be_locked=released)
    labels = _labels(weights, project)
    content = _contents(found, labels, project)
    path = target / store.file_name(model, version)
    with tempfile.TemporaryDirectory(prefix="archive-") as temporary:
        stage = Path(temporary)
        for name, data in content.items():
            (stage / "files" / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / "files" / name).write_bytes(data)
        folder = _run_archiver(stage, model, version, weights.name)
        # Listed before the code is tried, for Python leaves its bytecode beside it.
        members = sorted(path for path in folder.rglob("*") if path.is_file())
        for engine in ("torch", "openvino") if INT8[0] in found else ("torch",):
            _try(folder, engine, weights, labels)
        _set_manifest(folder / store.MANIFEST, released)
        target.mkdir(parents=True, exist_ok=True)
        data = _zip(folder, members)
        if promoted not in (None, hashlib.sha256(data).hexdigest()):
            raise ArchiveError(
                f"{path} was promoted, and this would be another: build it under another version"
            )
        atomic.write(path, data)
    return path


def released_in(target: Path) -> Path:
    """Return where the archive of the released weights lies in the model store."""
    return target / store.file_name(MODEL, VERSION)


def refresh(target: Path) -> Path | None:
    """Build the released weights' archive where it is missing or outdated; return it if so."""
    if is_outdated(released_in(target)):
        return build(MODEL, VERSION, Path(WEIGHTS), target)
    return None


def default_weights(model: str) -> Path:
    """Return the released weights, or those that `make train NAME=model` made."""
    return Path(WEIGHTS if model == MODEL else f"run/train/{model}/{_WEIGHTS}")


def is_released(archive: Path) -> bool:
    """Tell whether an archive was built from the released weights.

    Raises:
        ArchiveError: the file is no archive.
    """
    return _is_of_released(store.read(archive))


def _is_of_released(has: dict[str, bytes]) -> bool:
    return store.manifest(has).get("extensions") == RELEASED


def is_outdated(archive: Path, project: Path = Path()) -> bool:
    """Tell whether an archive of the released weights is missing, or older than they or the code.

    One that was built from other weights was built on purpose: it is not outdated.

    Raises:
        ArchiveError: the file is no archive, or a file of the project is missing.
    """
    if not archive.exists():
        return True
    has = store.read(archive)
    if not _is_of_released(has):
        return False
    has.pop(store.MANIFEST)
    weights = read_weights(project / WEIGHTS, must_be_locked=True)
    return has != _contents(weights, project / LABELS, project)


def read_weights(path: Path, must_be_locked: bool = False) -> dict[str, bytes]:
    """Read weights as safetensors, their lock, and what else it locks; by name in the archive.

    Where there is no lock, one is made.

    Raises:
        ArchiveError: a file is missing, or is none that holds weights and nothing else.
    """
    lock = path.with_suffix(".lock")
    if path.is_dir():
        raise ArchiveError(f"{path} is a folder: name the file of weights in it")
    if not path.is_file():
        raise ArchiveError(f"{path} is missing: name your weights (WEIGHTS=…), or train some")
    if must_be_locked and not lock.is_file():
        raise ArchiveError(f"{lock} is missing: released weights need their lock")
    data = path.read_bytes() if path.suffix == ".safetensors" else _convert(path)
    if not lock.is_file():
        made = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        return {_WEIGHTS: data, store.LOCK: (json.dumps(made, indent=2) + "\n").encode()}
    found = {_WEIGHTS: data, store.LOCK: lock.read_bytes()}
    for name in INT8 if _tells_of_int8(found[store.LOCK]) else ():
        if not path.with_name(name).is_file():
            raise ArchiveError(f"{path.with_name(name)} is missing, but {lock} tells of it")
        found[name] = path.with_name(name).read_bytes()
    return found


def _tells_of_int8(lock: bytes) -> bool:
    try:
        return "int8" in json.loads(lock)
    except (TypeError, ValueError):  # what is wrong with it, the classifier says when it is tried
        return False


def _convert(path: Path) -> bytes:
    """Turn a state dict that torch.save wrote into safetensors; no code in it is run.

    It may lie in a checkpoint, beside what else a trainer keeps, and its names may begin with what
    DataParallel and torch.compile put before them.
    """
    import torch  # here, for it takes a second that other commands need not wait for
    from safetensors.torch import save

    no_weights = f"{path} is neither safetensors nor a state dict saved by torch"
    try:
        with warnings.catch_warnings(action="ignore"):  # of TorchScript, which is refused
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler makes of the bytes
        raise ArchiveError(f"{no_weights}, or holds more than numbers: {REMEDY}") from error
    if isinstance(state, dict):
        state = next((state[key] for key in WRAPPERS if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
        held = f" but holds {', '.join(map(str, [*state][:5]))}" if isinstance(state, dict) else ""
        raise ArchiveError(f"{no_weights}{held}: {REMEDY}")
    # Copies, for safetensors writes no two tensors that share their memory, as tied weights do.
    return save(
        {
            _bare(str(name)): tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in state.items()
        }
    )


def _bare(name: str) -> str:
    """Return a parameter's name without what wrappers of a net put before it."""
    while name.startswith(PREFIXES):
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
    return name


def _labels(weights: Path, project: Path) -> Path:
    """Return the labels beside the weights, where training put them, or else the project's."""
    own = weights.with_name(store.LABELS)
    return own if own.is_file() else project / LABELS


def _contents(weights: dict[str, bytes], labels: Path, project: Path) -> dict[str, bytes]:
    """Return what an archive holds, besides its manifest, by name in the archive."""
    places = {f"model/{path.name}": path for path in (project / "model").glob("*.py")}
    places |= {name: project / name for name in TRAVELS}
    places |= {Path(name).name: project / name for name in (HANDLER, START, CONFIG, REQUIREMENTS)}
    places[store.LABELS] = labels
    try:
        files = {place: path.read_bytes() for place, path in places.items()}
    except FileNotFoundError as error:
        missing = error.filename
        raise ArchiveError(f"{missing} is missing: run this in the project's folder") from None
    return files | weights


def _run_archiver(stage: Path, model: str, version: str, name: str) -> Path:
    """Let torch-model-archiver lay out the archive as a folder; return that folder.

    It would stamp the time into a zip file, and it works in the temporary folder under the
    model's name, where two runs at once would meet: hence the folder, and one of its own.
    """
    for folder in ("tmp", "out"):
        (stage / folder).mkdir()
    arguments = {
        "--model-name": model,
        "--version": version,
        "--handler": f"files/{Path(HANDLER).name}",
        "--serialized-file": f"files/{_WEIGHTS}",
        "--config-file": f"files/{Path(CONFIG).name}",
        "--requirements-file": f"files/{Path(REQUIREMENTS).name}",
        "--extra-files": "files",
        "--archive-format": "no-archive",
        "--export-path": "out",
    }
    command = [sys.executable, "-m", "model_archiver.model_packaging"]
    for option, value in arguments.items():
        command += [option, value]
    environment = {**os.environ, "TMPDIR": str(stage / "tmp")}
    done = subprocess.run(command, cwd=stage, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise ArchiveError(f"torch-model-archiver failed on {name}: {last}")
    return stage / "out" / model


def _try(folder: Path, engine: str, weights: Path, labels: Path) -> None:
    """Classify something by an unpacked archive, so that what can't be served isn't archived."""
    try:
        classifier = bundle.load_folder(folder, str(weights), engine)
        pixels = classifier.decode(Image.new("RGB", (1, 1)))
        if isinstance(pixels, InputError):
            raise pixels
        rows = classifier.probabilities(np.stack([pixels] * 2))
    except ArchiveError as error:
        if "don't fit" not in str(error):
            raise
        own = weights.with_name(store.LABELS)
        whose = "" if labels == own else f", for there is no {own}"
        raise ArchiveError(
            f"{error}. {labels} says how many labels there are{whose}; docs/own-net.md tells of "
            f"another net, with which [{MODEL}] must go from releases.toml"
        ) from error
    except Exception as error:  # whatever a net or a preprocessing of one's own raises
        raise ArchiveError(
            f"{weights}: {bundle.failure(error, folder)} (docs/own-net.md says what net.py and "
            "image.py must be)"
        ) from error
    if rows.shape != (wanted := (2, len(classifier.labels))):
        raise ArchiveError(
            f"{weights}: of 2 images and {wanted[1]} labels the net makes an array of "
            f"{'×'.join(map(str, rows.shape))}, not 2×{wanted[1]}: requests are answered together"
        )
    if not np.isfinite(rows).all():
        raise ArchiveError(f"{weights} gives no numbers: its values are infinite or not a number")


def _set_manifest(path: Path, released: bool) -> None:
    """Take the time out of the manifest, and note where the weights are from."""
    manifest = json.loads(path.read_text())
    manifest["createdOn"] = CREATED_ON
    if released:
        manifest["model"]["extensions"] = RELEASED
    path.write_text(json.dumps(manifest, indent=2) + "\n")


def _zip(folder: Path, members: list[Path]) -> bytes:
    """Pack files of a folder so that the same files give the same bytes, anywhere and at any time.

    Sorted, one time, one mode, and stored: compressed bytes differ between versions of zlib,
    and weights hardly shrink.
    """
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for path in members:
            member = zipfile.ZipInfo(path.relative_to(folder).as_posix(), EPOCH)
            member.create_system, member.external_attr = 3, 0o100644 << 16
            packed.writestr(member, path.read_bytes())
    return archive.getvalue()
