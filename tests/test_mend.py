"""How TorchServe gathers a batch: as its makers left it, and mended."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import pytest

from classifier.serving import mend

from .deployment import together
from .images import crops

if TYPE_CHECKING:
    from pathlib import Path

    from .deployment import Deployment

OTHER = "org/pytorch/serve/Other.class"


def mended_class() -> bytes:
    with zipfile.ZipFile(mend.jar()) as jar:
        return jar.read(mend.CLASS)


def jar_with(code: bytes, folder: Path) -> Path:
    path = folder / "model-server.jar"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as jar:
        jar.writestr(mend.CLASS, code)
        jar.writestr(OTHER, mend.BEFORE)
    path.chmod(0o640)
    return path


def test_with_no_delay_a_batch_holds_all_that_have_come(deployment: Deployment) -> None:
    deployment.start()
    assert deployment.describe("1.0")["maxBatchDelay"] == 0
    answers = together(deployment.predict, list(crops(64)))
    sizes = [int(answer.headers["X-Batch-Size"]) for answer in answers]
    assert max(sizes) > 2, "as its makers left it, TorchServe gathers two requests at most"


def test_one_class_of_the_jar_is_mended_and_the_rest_stays(tmp_path: Path) -> None:
    mended = mended_class()
    (at,) = (n for n in range(len(mended)) if mended[n:].startswith(mend.AFTER + b"\x9d"))
    path = jar_with(mended[:at] + mend.BEFORE + mended[at + len(mend.BEFORE) :], tmp_path)
    assert mend.mend(path)
    with zipfile.ZipFile(path) as jar:
        assert jar.read(mend.CLASS) == mended
        assert jar.read(OTHER) == mend.BEFORE
        assert jar.testzip() is None
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]
    before = path.stat()
    assert not mend.mend(path), "there is nothing left to mend"
    assert path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("code", [b"", b"of another version" + mend.BEFORE])
def test_the_jar_of_another_torchserve_stays_as_it_is(code: bytes, tmp_path: Path) -> None:
    path = jar_with(code, tmp_path)
    before = path.read_bytes()
    with pytest.raises(mend.MendError, match=r"not the jar of TorchServe 0.12.0.* Set delay = 1"):
        mend.mend(path)
    assert path.read_bytes() == before
