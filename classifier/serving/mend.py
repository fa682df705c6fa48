"""Mend how TorchServe gathers a batch: `python -m classifier.serving.mend`.

TorchServe 0.12.0 takes a first request from its queue, and then others, until the batch is full or
`maxBatchDelay` ms have gone by: then it leaves off even where more are waiting already. So a delay
of 0 gathers two requests at most, and any other one is what a lone request waits. Mended, it
leaves off when the queue is empty: a delay of 0 gathers what has come, and waits for nothing.

TorchServe is maintained no more, so this can't be mended there. It is one comparison in a Java
class, of which four bytes are changed in the environment's jar; no other class is touched.

It needs the standard library alone: the Containerfile runs it where nothing else of ours is yet, in
the layer that changes least.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

CLASS = "org/pytorch/serve/wlm/Model.class"
RELEASED = "7c5523f1fe77fe79aa32665469e17725e70518692abcf4987989ef72f10d4cff"
"""SHA-256 of the class in 0.12.0."""
MENDED = "4d6131a3cba217fb6aa4b1baf274aad5b090733069b2d8a12aaf76b65f3eaee5"
BEFORE = bytes.fromhex("16 06 09 94")  # lload 6, lconst_0, lcmp: how the rest of the delay is to 0
AFTER = bytes.fromhex("04 00 00 00")  # iconst_1, nop, nop, nop: as if there was some left
"""In `pollBatch`, before the `ifgt` that goes on: with no time left, its next `poll` waits for
nothing, and where it finds nothing the batch is as large as it will be."""


class MendError(RuntimeError):
    """TorchServe can't be mended; the message says why."""


def jar() -> Path:
    """Return TorchServe's jar in this environment.

    Raises:
        MendError: there is no TorchServe.
    """
    found = importlib.util.find_spec("ts")
    path = found and found.origin and Path(found.origin).parent / "frontend" / "model-server.jar"
    if not path or not path.is_file():
        raise MendError("there is no TorchServe in this environment: pip install torchserve")
    return path


def mend(path: Path) -> bool:
    """Mend a jar; return whether there was something to mend.

    Args:
        path: of TorchServe's jar. It is written at one stroke.

    Raises:
        MendError: the jar is that of another TorchServe; it stays as it is.
        OSError: it can't be written.
    """
    with zipfile.ZipFile(path) as found:
        code = found.read(CLASS) if CLASS in found.namelist() else b""
        if _digest(code) == MENDED:
            return False
        if _digest(code) != RELEASED:
            raise MendError(
                f"{path} is not the jar of TorchServe 0.12.0, so it stays as it is: a delay of 0 "
                "may gather two requests at most there. Set delay = 1 in releases.toml"
            )
        # Beside it, so that it can take its place at one stroke.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            mended = Path(folder) / path.name
            with zipfile.ZipFile(mended, "w") as written:
                for entry in found.infolist():
                    is_it = entry.filename == CLASS
                    content = code.replace(BEFORE, AFTER) if is_it else found.read(entry)
                    written.writestr(entry, content)
            shutil.copymode(path, mended)
            mended.replace(path)
    return True


def _digest(code: bytes) -> str:
    return hashlib.sha256(code).hexdigest()


def main() -> int:
    """Mend the environment's jar; what can't be mended serves, too."""
    try:
        if mend(jar()):
            print("Mended how TorchServe gathers a batch (classifier/serving/mend.py).")
    except (MendError, OSError) as error:
        print(error, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
