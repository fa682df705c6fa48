"""What two versions make of the same pictures, added up, and when a promotion is refused for it."""

from __future__ import annotations

import base64
import csv
import io
import struct
import threading
from dataclasses import astuple, replace
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from classifier.errors import ServerError, UnavailableError
from classifier.predicting import outcomes as told
from classifier.predicting.outcomes import Outcome
from classifier.predicting.pictures import Source
from classifier.predicting.prediction import Prediction
from classifier.releasing import comparison, comparison_page
from classifier.releasing.comparison import Comparison, Side, Tally
from classifier.releasing.promotion import Promotion
from classifier.serving.answered import Answered
from classifier.serving.releases import Release

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def outcome(
    label: str, right: str = "", seconds: float = 0.0, sure: float = 0.5, name: str = "x"
) -> Outcome:
    """What came of a picture: a label, or nothing where that is empty."""
    source = Source(name, right)
    if not label:
        return Outcome(source, error="no answer")
    return Outcome(source, Prediction({label: sure, "other": 0.1}, "1.0"), seconds=seconds)


def tally(pairs: Sequence[tuple[Outcome, Outcome]]) -> Comparison:
    counted = Tally(("old", "new"))
    for pair in pairs:
        counted.add(*pair)
    return counted.result(2.0, 4.0)


def test_each_side_is_measured_by_itself() -> None:
    pairs = [
        (outcome("cat", "cat", 0.001 * n, 0.8), outcome("cat" if n > 25 else "dog", "cat", 0.5))
        for n in range(101)
    ]
    found = tally(pairs)
    assert found.pictures == 101
    assert astuple(found.old)[1:] == pytest.approx((1.0, 0.8, 50, 99, 50.5, 0))
    assert astuple(found.new)[1:] == pytest.approx((75 / 101, 0.5, 500, 500, 25.25, 0))
    assert found.loss == pytest.approx(26 / 101)
    assert found.agreement == pytest.approx(75 / 101)
    assert found.changes == {("cat", "dog"): 26}
    assert len(found.differences) == 1, "a picture that came often is told once"


def test_a_picture_without_an_answer_counts_as_that_alone() -> None:
    found = tally(
        [
            (outcome("cat", "cat"), outcome("", "cat")),
            (outcome("", "dog"), outcome("cat", "dog")),
            (outcome("dog", "dog"), outcome("dog", "dog")),
            (outcome("dog", "dog"), outcome("cat", "dog")),
        ]
    )
    assert (found.pictures, found.agreement, found.changes) == (2, 0.5, {("dog", "cat"): 1})
    assert (found.old.failed, found.new.failed) == (1, 1)
    assert found.old.accuracy == 1
    assert found.new.accuracy == pytest.approx(1 / 3)


def test_pictures_without_classes_tell_no_accuracy() -> None:
    one = (outcome("cat", "cat"), outcome("cat", "cat"))
    found = tally([one, (outcome("cat"), outcome("cat"))])
    assert (found.old.accuracy, found.new.accuracy, found.loss) == (None, None, None)
    nothing = tally([(outcome(""), outcome(""))])
    assert (nothing.agreement, nothing.old.rate, nothing.old.p99) == (0.0, 0.0, 0.0)


def refused(monkeypatch: pytest.MonkeyPatch, old: Side, new: Side, tolerance: float) -> str:
    """Return why a promotion is refused by what a comparison finds; nothing where it is not."""
    found = Comparison(10, old, new, agreement=1.0)
    monkeypatch.setattr(comparison, "compare", lambda *_: found)
    change = Promotion(mock.MagicMock(), "cifar10", "2.0", [], tolerance)
    try:
        change._compare(Release("cifar10", "1.0", ("1.0",)))
    except ServerError as error:
        return str(error)
    return ""


def test_a_version_that_is_worse_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Side("1.0", 0.75, 0.9, 1.0, 2.0, 100.0, failed=1)
    for accuracy, tolerance, is_refused in (
        (0.75, 0.0, False),
        (0.5, 0.25, False),
        (0.5, 0.125, True),
        (0.875, 0.0, False),
    ):
        said = refused(monkeypatch, old, replace(old, accuracy=accuracy), tolerance)
        assert ("is right about" in said) is is_refused, (accuracy, tolerance, said)
    said = refused(monkeypatch, old, replace(old, failed=2), 1.0)
    assert said == "2.0 fails on 2 pictures, 1.0 on 1: not promoted"
    assert not refused(monkeypatch, old, replace(old, failed=0), 0.0)
    assert not refused(monkeypatch, replace(old, accuracy=None), replace(old, accuracy=None), 0.0)


def test_what_a_server_answered_in_a_while_is_a_difference() -> None:
    assert Answered(10, 4) - Answered(6, 3) == Answered(4, 1)
    assert (Answered(4, 1).share, Answered(0, 0).share) == (0.25, 0.0)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (Answered(100, 0), Answered(100, 0), ""),
        (Answered(100, 0), Answered(100, 1), ""),
        (Answered(1000, 0), Answered(1000, 11), "1.1% of 1,000 requests failed, before it 0.0%"),
        (Answered(100, 50), Answered(100, 50), ""),
        (Answered(0, 0), Answered(100, 100), "100.0% of 100 requests failed"),
        (Answered(0, 0), Answered(0, 0), ""),
        (None, Answered(100, 100), ""),
        (Answered(100, 0), None, ""),
    ],
)
def test_failures_may_not_rise_with_the_switch(
    before: Answered | None, after: Answered | None, message: str
) -> None:
    told: list[str] = []
    change = Promotion(mock.MagicMock(), "cifar10", "2.0", [], tell=told.append)
    if message:
        with pytest.raises(ServerError, match=message):
            change._check(before, after)
        return
    change._check(before, after)
    assert ("do not tell" in told[0]) is (before is None or after is None)


def test_a_probe_that_another_version_answers_is_a_failure() -> None:
    server = mock.MagicMock()
    client = server.client.return_value.__enter__.return_value
    client.predict.return_value = Prediction({"cat": 1.0}, "1.0")
    picture = mock.Mock(read=lambda: b"x")
    change = Promotion(server, "cifar10", "2.0", [picture], probes=3, tell=lambda _: None)
    with pytest.raises(ServerError, match=r"2\.0 failed at probe 1: 1\.0 answered"):
        change._probe("1.0")
    client.predict.return_value = Prediction({"cat": 1.0}, "2.0")
    change._probe("1.0")


def with_exif(image: Image.Image, *entries: bytes) -> bytes:
    """Return a JPEG with entries of EXIF as they are, each of 12 bytes."""
    tiff = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    file = io.BytesIO()
    image.save(file, "JPEG", exif=b"Exif\0\0" + tiff)
    return file.getvalue()


def drawn(name: Path) -> Image.Image:
    """Return what a report shows of a picture."""
    address = comparison_page._data(str(name))
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")


def test_a_report_shows_pictures_as_they_were_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # its left is up
    Image.new("RGB", (20, 10)).save(tmp_path / "phone.png", exif=exif)
    assert drawn(tmp_path / "phone.png").size == (10, 20)
    width = struct.pack(
        "<HHI4s", 0x0100, 2, 4, b"odd"
    )  # a text, which Pillow reads but can't write
    turned = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    (tmp_path / "odd.jpg").write_bytes(with_exif(Image.new("RGB", (20, 10)), width, turned))
    assert drawn(tmp_path / "odd.jpg").size == (10, 20)
    Image.new("RGBA", (8, 8)).save(tmp_path / "cut.png")
    assert drawn(tmp_path / "cut.png").getpixel((0, 0)) == (255, 255, 255)
    Image.fromarray(np.full((8, 8), 25700, np.uint16)).save(tmp_path / "gray.png")
    assert drawn(tmp_path / "gray.png").getpixel((0, 0)) == (100, 100, 100)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "plain.jpg", quality=95)
    assert drawn(tmp_path / "plain.jpg").getpixel((0, 0))[0] > 250  # type: ignore[index]
    (tmp_path / "none.png").write_bytes(b"none")
    assert comparison_page._data(str(tmp_path / "none.png")) == ""


def test_the_old_version_may_be_gone_and_the_new_one_not() -> None:
    def gone(_: bytes) -> Prediction:
        raise UnavailableError("no answer")

    def answers(_: bytes) -> Prediction:
        return Prediction({"cat": 0.9}, "2.0")

    sources = [Source("samples/cat.jpg", "cat")] * 100
    found = comparison.compare(("1.0", "2.0"), (gone, answers), sources)
    assert (found.old.failed, found.new.failed) == (100, 0)
    assert found.new.accuracy == 1
    with pytest.raises(UnavailableError, match="no answer to 32 pictures in turn"):
        comparison.compare(("1.0", "2.0"), (answers, gone), sources)


def test_a_line_of_csv_is_one_picture_whatever_its_name() -> None:
    outcomes = [outcome("cat", name=name) for name in ("a\nb.png", "a\rb.png", 'a,"b".png')]
    text = "\r\n".join(map(told.as_csv, outcomes))
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert [row[0] for row in rows] == [one.source.name for one in outcomes]
    assert {len(row) for row in rows} == {5}


def test_who_interrupts_a_comparison_waits_for_no_answers() -> None:
    abandoned = threading.Event()

    def answers(image: bytes) -> Prediction:
        if image == b"last":
            raise KeyboardInterrupt
        abandoned.wait()
        return Prediction({"cat": 0.9}, "2.0")

    sources = [mock.Mock(read=mock.Mock(return_value=data)) for data in (b"last", b"x", b"x")]
    with pytest.raises(KeyboardInterrupt):
        comparison.compare(("1.0", "2.0"), (answers, answers), sources, abandoned.set)
    assert abandoned.is_set()
