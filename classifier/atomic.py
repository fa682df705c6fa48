"""Write a file at one stroke: whoever reads it, now or after a crash, finds the old or the new."""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, content: str | bytes) -> None:
    """Write a file, or leave it as it is where that fails; it is on the disk when this returns.

    Where it is a link, what it leads to is written. Whose it is and who may read it stays as it is,
    too, as far as the system lets us.
    """
    path = path.resolve()
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            before = path.stat()
            with contextlib.suppress(PermissionError):
                os.chown(partial, before.st_uid, before.st_gid)
            os.chmod(partial, before.st_mode & 0o777)
        else:
            os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:  # such as a full disk, or Ctrl-C when it is done already
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # its entry is the file's name
    finally:
        os.close(folder)
