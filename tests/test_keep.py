"""What the handler keeps of requests: which, how many, how safely."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from handler import keep
from handler.keep import Keeper, keeper, prune

from .images import encode, sample

PNG = encode(sample().resize((32, 32)))

WRITER = """
import sys
from pathlib import Path
from handler import keep

keep.MOST_FILES = 20
keep.prune.__defaults__ = (20, keep.MOST_BYTES)
keeper = keep.Keeper(Path(sys.argv[1]), 1.0)
for number in range(200):
    keeper.offer(b"\\x89PNG of no worth")
    keeper.write()
    assert not keeper._has_failed
"""
"""A worker that writes, and deletes, as fast as it can."""


def kept(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def test_nothing_is_kept_unless_somebody_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(keep.KEEP, raising=False)
    assert keeper("cifar10") is None
    monkeypatch.setenv(keep.KEEP, json.dumps({"pets": {"folder": "/x", "share": 1}}))
    assert keeper("cifar10") is None
    assert keeper("pets") is not None


def test_keeps_its_share_in_order_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "traffic" / "cifar10"
    files = [PNG, encode(sample(), "JPEG"), *(encode(sample(), k) for k in ("WEBP", "GIF", "BMP"))]
    files.append(encode(sample(), "TIFF"))
    whole = Keeper(folder, 1.0)
    for file in files:
        whole.offer(file)
    assert not folder.exists(), "no request waits for that"
    whole.write()
    whole.write()
    assert kept(folder) == files
    suffixes = [path.suffix for path in sorted(folder.iterdir())]
    assert suffixes == [".png", ".jpg", ".webp", ".gif", ".bmp", ".tif"]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}

    random.seed(0)
    part = Keeper(tmp_path / "part", 0.25)
    for _ in range(400):
        part.offer(PNG)
    part.write()
    assert 75 < len(kept(tmp_path / "part")) < 125


def test_a_full_disk_fails_nothing_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = Keeper(tmp_path, 1.0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        for _ in range(3):
            keeper.offer(PNG)
            keeper.write()
    assert kept(tmp_path) == [], "nothing half written is left"
    (said,) = caplog.messages
    assert "can't be kept" in said
    assert "No space left on device" in said
    keeper.offer(PNG)
    keeper.write()
    assert kept(tmp_path) == [PNG]
    monkeypatch.setattr(Path, "rename", full)
    keeper.offer(PNG)
    keeper.write()
    assert len(caplog.messages) == 2, "it is full anew"


def test_a_folder_that_was_there_is_its_owners_alone_too(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    keeper = Keeper(tmp_path, 1.0)
    keeper.offer(PNG)
    keeper.write()
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_what_waits_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "MOST_WAITING", 3 * len(PNG))
    keeper = Keeper(tmp_path, 1.0)
    for _ in range(5):
        keeper.offer(PNG)
    keeper.write()
    assert len(kept(tmp_path)) == 3
    keeper.offer(PNG)
    keeper.write()
    assert len(kept(tmp_path)) == 4


def test_of_more_than_a_folder_may_hold_only_the_last_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keep, "MOST_FILES", 3)
    keeper = Keeper(tmp_path, 1.0)
    for number in range(5):
        keeper.offer(b"%d" % number)
    keeper.write()
    assert kept(tmp_path) == [b"2", b"3", b"4"]


@pytest.mark.parametrize(("files", "size", "left"), [(3, 1000, 3), (10, 45, 4), (10, 1000, 6)])
def test_the_oldest_are_deleted_by_number_and_by_bytes(
    tmp_path: Path, files: int, size: int, left: int
) -> None:
    keeper = Keeper(tmp_path, 1.0)
    for number in range(6):
        keeper.offer(b"%010d" % number)
    keeper.write()
    prune(tmp_path, files, size)
    assert kept(tmp_path) == [b"%010d" % number for number in range(6 - left, 6)]


def test_names_are_unique_where_times_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    for process in (1, 2):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        keeper = Keeper(tmp_path, 1.0)
        for _ in range(3):
            keeper.offer(PNG)
        keeper.write()
    assert len(kept(tmp_path)) == 6


def test_two_workers_share_a_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "shared")]
    workers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for worker in workers:
        _, said = worker.communicate(timeout=60)
        assert worker.returncode == 0, said
    assert 0 < len(kept(tmp_path / "shared")) <= 20


def test_a_folder_among_them_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sorted").mkdir()
    (tmp_path / "newer").write_bytes(b"1")
    os.utime(tmp_path / "sorted", (0, 0))
    prune(tmp_path, most_files=0)
    assert [path.name for path in tmp_path.iterdir()] == ["sorted"]
