"""Find the pictures that somebody means: files, folders, patterns, addresses, standard input."""

from __future__ import annotations

import functools
import glob
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from ..archiving import store
from ..errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
"""Files that are taken out of a folder, but not hidden ones; others are taken only by name."""
STDIN = "-"
MOST_BYTES = 64 * 2**20
"""What is downloaded of an address at most."""
DOWNLOAD_TIMEOUT = 30.0  # seconds


@dataclass(frozen=True)
class Source:
    """A picture that was named, not yet read.

    Attributes:
        name: a path, an address or `-`.
        label: the folder it lies in, where pictures are sorted into a folder for each class.
    """

    name: str
    label: str = ""

    def read(self) -> bytes:
        """Return the file's bytes.

        Raises:
            InputError: it can't be read.
        """
        if self.name == STDIN:
            return _stdin()
        if is_address(self.name):
            return _download(self.name)
        try:
            return Path(self.name).read_bytes()
        except OSError as error:
            raise InputError(f"{self.name} can't be read: {error.strerror}") from None


@functools.cache
def _stdin() -> bytes:
    """Read what is piped in: once, for each `-` means the same picture."""
    return sys.stdin.buffer.read()


def find(names: Iterable[str]) -> list[Source]:
    """Return the pictures that are named, in order; those of a folder sorted, and of its folders.

    Args:
        names: files, folders, patterns such as `photos/*.jpg`, http(s) addresses, or `-`.

    Raises:
        InputError: there is no such file, a folder holds no pictures, or nothing matches a pattern.
    """
    return [source for name in names for source in _find(name)]


def labelled(folder: Path) -> list[Source]:
    """Return the pictures of `folder/<class>/*`, with their classes; what is hidden is none.

    Raises:
        InputError: there are none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: pictures belong into {folder}/<class>/")
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not is_hidden(p, folder))
    found = [Source(str(path), c.name) for c in classes for path in _pictures(c)]
    if not found:
        raise InputError(f"{folder} holds no pictures: they belong into {folder}/<class>/")
    return found


def dataset(data: Path) -> list[Source]:
    """Return the pictures of a folder: with their classes, where all lie in folders in it.

    Raises:
        InputError: there are none.
    """
    has_classes = data.is_dir() and not any(_is_picture(path, data) for path in data.iterdir())
    return labelled(data) if has_classes else find([str(data)])


def check_classes(sources: Iterable[Source], model_store: Path, versions: Sequence[str]) -> None:
    """Fail where pictures have a class that is no label: no version could be right about them.

    Args:
        sources: the pictures.
        model_store: holds the archives, which are read where a picture has a class.
        versions: as `model:version`.

    Raises:
        ArchiveError: an archive is missing or damaged.
        InputError: there are such pictures.
    """
    classes = {source.label for source in sources if source.label}
    labels = store.labels(model_store, versions) if classes else []
    if unknown := sorted(classes.difference(labels)):
        raise InputError(
            f"the pictures lie in folders that are no labels: {', '.join(unknown)}. "
            f"The labels are {', '.join(labels)}"
        )


def is_address(name: str) -> bool:
    """Tell whether a name is an http(s) address."""
    return name.startswith(("http://", "https://"))


def is_hidden(path: Path, folder: Path) -> bool:
    """Tell whether a path in a folder is hidden, or lies in what is, as `.ipynb_checkpoints/`."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _find(name: str) -> Iterator[Source]:
    if not name:  # as of a shell's variable that is not set; as a path it would be this folder
        raise InputError("a picture has an empty name: name a file, a folder or an address")
    path = Path(name)
    if name == STDIN:
        _stdin()  # here, where Ctrl-C can end it: who waits for a thread can't be interrupted
    if name == STDIN or is_address(name) or path.is_file():
        yield Source(name)
    elif path.is_dir():
        inside = list(_pictures(path))
        if not inside:
            raise InputError(f"{name} holds no pictures ({', '.join(sorted(SUFFIXES))})")
        yield from (Source(str(found)) for found in inside)
    else:
        matches = [m for m in sorted(glob.glob(name, recursive=True)) if Path(m).is_file()]
        if not matches:
            raise InputError(f"{name}: no such file, and nothing that it matches")
        yield from map(Source, matches)


def _pictures(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if _is_picture(path, folder))


def _is_picture(path: Path, folder: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file() and not is_hidden(path, folder)


def _download(address: str) -> bytes:
    try:
        with httpx.stream(
            "GET", address, follow_redirects=True, timeout=DOWNLOAD_TIMEOUT
        ) as answer:
            if answer.is_error:
                raise InputError(f"{address} answers {answer.status_code}", answer.status_code)
            data = bytearray()
            for chunk in answer.iter_bytes():
                data += chunk
                if len(data) > MOST_BYTES:
                    raise InputError(f"{address} is larger than {MOST_BYTES // 2**20} MiB")
            return bytes(data)
    except (httpx.HTTPError, httpx.InvalidURL, ImportError, ValueError) as error:
        # The last two of a proxy that httpx can't use, such as one for SOCKS.
        raise InputError(f"{address} can't be had: {error or type(error).__name__}") from None
