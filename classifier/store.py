"""The model store: a folder of archives, named `<model>-<version>.mar`."""

from __future__ import annotations

import hashlib
import json
import zipfile
from typing import TYPE_CHECKING

from packaging.version import InvalidVersion, Version

from .errors import ArchiveError

if TYPE_CHECKING:
    from pathlib import Path

LATEST = "latest"


def check_version(version: str) -> str:
    """Return the version as it is given.

    Raises:
        ArchiveError: it is none by PEP 440.
    """
    try:
        Version(version)
    except InvalidVersion:
        raise ArchiveError(f"{version!r} is no version by PEP 440, such as 1.0 or 2.1rc1") from None
    return version


def file_name(model: str, version: str) -> str:
    """Return the name of an archive in the store."""
    return f"{model}-{version}.mar"


def versions(store: Path, model: str) -> list[str]:
    """Return the versions of a model that the store holds, lowest first."""
    prefix, suffix = f"{model}-", ".mar"
    names = [path.name for path in store.glob(f"{prefix}*{suffix}")]
    found = [name.removeprefix(prefix).removesuffix(suffix) for name in names]
    return sorted((v for v in found if _is_version(v)), key=Version)


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


def check(archive: Path, model: str, version: str) -> None:
    """Check that a file is a whole archive, of that model and version.

    Raises:
        ArchiveError: it is damaged, or another's: TorchServe would register it as what it says
            itself, whatever the file is called.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            damaged = packed.testzip()
            says = json.loads(packed.read("MAR-INF/MANIFEST.json"))["model"]
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ArchiveError(f"{archive} is damaged ({error}): build it anew") from None
    if damaged:
        raise ArchiveError(f"{archive} is damaged (in {damaged}): build it anew")
    if (says.get("modelName"), says.get("modelVersion")) != (model, version):
        is_ = f"{says.get('modelName')} {says.get('modelVersion')}"
        raise ArchiveError(f"{archive} is an archive of {is_}: name it so, or build it anew")


def sha256(path: Path) -> str:
    """Return a file's sha256, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True
