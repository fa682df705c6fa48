"""The model store: a folder of archives, named `<model>-<version>.mar`."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

from packaging.version import InvalidVersion, Version

from ..errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MANIFEST = "MAR-INF/MANIFEST.json"
LABELS = "index_to_name.json"
LOCK = "weights.lock"
"""What an archive's weights must be, and how good they are."""
LATEST = "latest"


def check_version(version: str) -> str:
    """Return the version as it is given.

    Raises:
        ArchiveError: it is none by PEP 440, or is written in another way than its normal one.
    """
    try:
        normal = str(Version(version))
    except InvalidVersion:
        raise ArchiveError(f"{version!r} is no version by PEP 440, such as 1.0 or 2.1rc1") from None
    if version != normal:  # 1.0RC1 and 1.0rc1 would be two files of one version
        raise ArchiveError(f"{version!r} is written {normal} by PEP 440")
    return version


def file_name(model: str, version: str) -> str:
    """Return the name of an archive in the store."""
    return f"{model}-{version}.mar"


def versions(store: Path, model: str) -> list[str]:
    """Return the versions of a model that the store holds, lowest first."""
    prefix, suffix = f"{model}-", ".mar"
    names = [path.name for path in store.glob(f"{prefix}*{suffix}")]
    found = [name.removeprefix(prefix).removesuffix(suffix) for name in names]
    return in_order(filter(_is_version, found))


def in_order(versions: Iterable[str]) -> list[str]:
    """Return versions, lowest first; before them those that are none by PEP 440."""

    def key(version: str) -> tuple[bool, Version | str]:
        return (True, Version(version)) if _is_version(version) else (False, version)

    return sorted(versions, key=key)


def find(store: Path, reference: str) -> Path:
    """Return the archive that `model:version` names; version `latest` is the highest.

    Raises:
        ArchiveError: the store holds no such archive.
    """
    model, _, version = reference.partition(":")
    present = versions(store, model)
    if present and version in ("", LATEST):
        version = present[-1]
    path = store / file_name(model, version)
    if not path.is_file():
        has = ", ".join(present) or "none"
        raise ArchiveError(f"{store} has no archive of {reference} (versions of {model}: {has})")
    return path


def read(archive: Path) -> dict[str, bytes]:
    """Return an archive's files by name; each is checked against its checksum.

    Raises:
        ArchiveError: the file is missing, is no archive, or is damaged.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            return {name: packed.read(name) for name in packed.namelist()}
    except FileNotFoundError:
        raise ArchiveError(f"{archive} is missing: `make archive` builds it") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise ArchiveError(f"{archive} is damaged ({error}): build it anew") from None


def manifest(files: dict[str, bytes]) -> dict[str, Any]:
    """Return what an archive's manifest says of the model, or nothing where it has none."""
    try:
        says = json.loads(files[MANIFEST])["model"]
    except (KeyError, TypeError, ValueError):
        return {}
    return says if isinstance(says, dict) else {}


def labels(store: Path, references: Iterable[str]) -> list[str]:
    """Return the labels that one or the other of some archives, named `model:version`, gives.

    Raises:
        ArchiveError: the store holds no such archive, it is damaged, or has no labels.
    """
    found = [label for reference in references for label in _labels(find(store, reference))]
    return list(dict.fromkeys(found))


def _labels(archive: Path) -> list[str]:
    """Return an archive's labels; one that is not ours may have none, or more than a name each."""
    try:
        found = list(json.loads(read(archive)[LABELS]).values())
    except (KeyError, ValueError, AttributeError):
        found = [None]
    if not found or not all(isinstance(label, str) for label in found):
        raise ArchiveError(f"{archive} has no {LABELS} with a name for each class: build it anew")
    return found


def check(archive: Path, model: str, version: str) -> None:
    """Check that a file is a whole archive, of that model and version.

    Raises:
        ArchiveError: it is damaged, or another's: TorchServe would register it as what it says
            itself, whatever the file is called.
    """
    says = manifest(read(archive))
    if not says:
        raise ArchiveError(f"{archive} has no manifest that can be read: build it anew")
    if (says.get("modelName"), says.get("modelVersion")) != (model, version):
        is_ = f"{says.get('modelName')} {says.get('modelVersion')}"
        raise ArchiveError(f"{archive} is an archive of {is_}: name it so, or build it anew")


def sha256(path: Path) -> str:
    """Return a file's sha256, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_version(text: str) -> bool:
    """Tell whether it is a version as files have it: resnet-50-2.mar is no 50-2 of resnet."""
    try:
        check_version(text)
    except ArchiveError:
        return False
    return True
