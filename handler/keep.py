"""Keep a sample of the pictures that users send, for `classifier shadow` to ask again.

Off unless releases.toml says `keep = …` for the model. What is kept is users' data: the folder is
its owner's alone (0700, its files 0600), holds so many files and bytes at most, oldest deleted
first, and stays until somebody deletes it.

Only requests of one image file are kept, not KServe's JSON bodies; and only what was decoded. A
request waits for no disk: its picture is put aside, and a thread writes what has gathered. What
can't be written, as on a full disk, is lost, and no request fails for it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import threading
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

KEEP = "CLASSIFIER_KEEP"
"""The environment variable by which `classifier serve` tells what is kept: JSON by model, the
folder and the share of requests."""
PERIOD = 0.2  # seconds
MOST_FILES = 1_000
MOST_BYTES = 256 * 2**20
"""What the folder holds at most, when the workers of a model have put their last away."""
MOST_WAITING = 32 * 2**20
"""Bytes that wait for being written; what comes then is not kept."""
SUFFIXES = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG": "png",
    b"RIFF": "webp",
    b"GIF8": "gif",
    b"BM": "bmp",
}
"""By the first bytes of a file. Of the formats that are decoded, only TIFF begins otherwise."""

log = logging.getLogger(__name__)


class Keeper:
    """Keeps pictures that one worker was asked; other workers may use the same folder.

    Args:
        folder: where; it is made when there is something to keep.
        share: the part of what is offered that is kept, in (0, 1].
    """

    def __init__(self, folder: Path, share: float) -> None:
        self._folder, self._share = folder, share
        self._waiting: list[bytes] = []
        self._bytes = 0
        self._lock = threading.Lock()
        self._numbers = count()
        self._has_failed = False

    def start(self) -> None:
        """Write what is offered, from a thread, until the process ends."""
        threading.Thread(target=self._write_for_ever, name="keep", daemon=True).start()

    def offer(self, image: bytes | bytearray) -> None:
        """Keep an image file, or not, by chance."""
        if random.random() >= self._share:  # noqa: S311
            return
        with self._lock:
            if self._bytes + len(image) <= MOST_WAITING:
                self._waiting.append(bytes(image))
                self._bytes += len(image)

    def write(self) -> None:
        """Write what was offered since the last time, and delete what is too much."""
        with self._lock:
            images, self._waiting, self._bytes = self._waiting, [], 0
        if not images:
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(0o700)
            for image in images[-MOST_FILES:]:
                self._write(image)
            prune(self._folder)
            self._has_failed = False
        except OSError as error:
            if not self._has_failed:  # a full disk needs no more lines than one
                log.warning("requests can't be kept in %s: %s", self._folder, error.strerror)
            self._has_failed = True

    def _write(self, image: bytes) -> None:
        """Write a file at one stroke: whoever lists the folder finds it whole, or not at all.

        The time is in its name, so that names sort by it; the process and a number make it unique.
        """
        name = f"{time.time_ns()}-{os.getpid()}-{next(self._numbers)}.{_suffix(image)}"
        partial = self._folder / f".{name}.part"
        try:
            descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with open(descriptor, "wb") as file:
                file.write(image)
            with contextlib.suppress(FileNotFoundError):  # others wrote so much that it got old
                partial.rename(self._folder / name)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

    def _write_for_ever(self) -> None:
        while True:
            time.sleep(PERIOD)
            self.write()


def keeper(model: str) -> Keeper | None:
    """Return what keeps the pictures of a model; None where none are to be kept."""
    told = json.loads(os.environ.get(KEEP, "{}")).get(model)
    return None if told is None else Keeper(Path(told["folder"]), told["share"])


def prune(folder: Path, most_files: int = MOST_FILES, most_bytes: int = MOST_BYTES) -> None:
    """Delete a folder's oldest files until so many files and bytes are left.

    Several processes may do so at once: they choose the same files, and one that is gone is gone.
    What a killed worker had half written gets old, too.
    """
    found = sorted(_files(folder))
    files, size = len(found), sum(size for _, _, size in found)
    for _, path, of_it in found:
        if files <= most_files and size <= most_bytes:
            return
        path.unlink(missing_ok=True)
        files, size = files - 1, size - of_it


def _files(folder: Path) -> Iterator[tuple[int, Path, int]]:
    """Yield the time, path and size of each file."""
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):  # another worker has deleted it
            if not entry.is_file():  # as a folder into which somebody sorts them
                continue
            stat = entry.stat()
            yield stat.st_mtime_ns, Path(entry.path), stat.st_size


def _suffix(image: bytes) -> str:
    """Return the suffix of an image file, by which a folder's pictures are found."""
    return next((s for begin, s in SUFFIXES.items() if image.startswith(begin)), "tif")
