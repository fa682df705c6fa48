"""Quick decoding: the very pixels that Pillow gives, or nothing."""

from __future__ import annotations

import io
import random
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from model import codecs
from model.image import MAX_PIXELS, ImageError, decode

from .images import chunk, encode, rescanned, sample

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL = sample().resize((48, 40))

PLAIN = {
    "PNG": encode(SMALL),
    "PNG of the net's size": encode(SMALL.resize((32, 32))),
    "JPEG": encode(SMALL, "JPEG"),
    "JPEG 4:4:4": encode(SMALL, "JPEG", subsampling=0, quality=95),
    "progressive JPEG": encode(SMALL, "JPEG", progressive=True),
    "JPEG with restarts": encode(SMALL, "JPEG", restart_marker_blocks=2),
    "wide JPEG": encode(sample().resize((900, 60)), "JPEG"),
}


def with_text(compressed: bool, international: bool = False) -> bytes:
    """Give a PNG a text: XMP and EXIF are written so, too, and may tell which way is up."""
    info = PngInfo()
    if international:
        info.add_itxt("XML:com.adobe.xmp", "text", zip=compressed)
    else:
        info.add_text("Raw profile type exif", "text", zip=compressed)
    return encode(SMALL, pnginfo=info)


def with_palette(png: bytes) -> bytes:
    """Give a PNG of RGB pixels the palette that it may have, for screens of few colours."""
    return png[:33] + chunk(b"PLTE", bytes(range(9))) + png[33:]  # behind the header


def in_tall_blocks(jpeg: bytes) -> bytes:
    """Say of a JPEG of 4:2:0 that it is 4:4:1, of which few have heard."""
    at = jpeg.index(b"\xff\xc0") + 11
    assert jpeg[at] == 0x22
    return jpeg[:at] + b"\x14" + jpeg[at + 1 :]


LEFT = {
    "PNG with a palette": encode(SMALL.convert("P")),
    "RGB PNG with a palette": with_palette(encode(SMALL)),
    "gray PNG": encode(SMALL.convert("L")),
    "PNG with transparency": encode(SMALL.convert("RGBA")),
    "PNG with a transparent colour": encode(SMALL, transparency=(0, 0, 0)),
    "PNG with a note": encode(SMALL, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
    "PNG with a text": with_text(compressed=False),
    "PNG with a compressed text": with_text(compressed=True),
    "PNG with XMP": with_text(compressed=False, international=True),
    "PNG of 16 bits": encode(Image.new("I;16", (40, 40))),
    "gray JPEG": encode(SMALL.convert("L"), "JPEG"),
    "CMYK JPEG": encode(SMALL.convert("CMYK"), "JPEG"),
    "JPEG 4:4:1": in_tall_blocks(encode(SMALL, "JPEG")),
    "JPEG of many scans": rescanned(SMALL.resize((500, 500)), 4000),
    "large JPEG": encode(sample().resize((700, 600)), "JPEG"),
    "GIF": encode(SMALL, "GIF"),
    "nothing": b"",
}


@pytest.fixture
def by_pillow(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], np.ndarray | None]:
    """Decode by Pillow alone; None where it refuses."""

    def pillow(data: bytes) -> np.ndarray | None:
        with monkeypatch.context() as patch:
            patch.setattr(codecs, "decode", lambda *_: None)
            try:
                return decode(data)
            except ImageError:
                return None

    return pillow


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN)
def test_gives_the_pixels_that_pillow_gives(
    data: bytes, by_pillow: Callable[[bytes], np.ndarray | None]
) -> None:
    assert codecs.decode(data, MAX_PIXELS) is not None
    expected = by_pillow(data)
    assert expected is not None
    assert np.array_equal(decode(data), expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_files_are_as_pillow_says_and_leave_no_memory(
    kind: str, by_pillow: Callable[[bytes], np.ndarray | None]
) -> None:
    draw = random.Random(1)
    process, files, whole = psutil.Process(), [], encode(sample().resize((200, 150)), kind)
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        files.append(bytes(damaged))
    for data in files[:300]:
        expected, found = by_pillow(data), codecs.decode(data, MAX_PIXELS)
        if found is not None:
            assert expected is not None
            assert np.array_equal(decode(data), expected)
    before = process.memory_full_info().uss
    for data in files:
        codecs.decode(data, MAX_PIXELS)
    assert process.memory_full_info().uss - before < 20e6, "bytes that nobody gave back"


@pytest.mark.parametrize("data", LEFT.values(), ids=LEFT)
def test_leaves_what_is_rare_to_pillow(data: bytes) -> None:
    assert codecs.decode(data, MAX_PIXELS) is None


def test_a_jpeg_of_tall_blocks_is_an_image() -> None:
    assert decode(LEFT["JPEG 4:4:1"]).std() > 20


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_leaves_what_has_too_many_pixels(kind: str) -> None:
    assert codecs.decode(encode(SMALL, kind), SMALL.width * SMALL.height - 1) is None


def test_never_takes_damage_for_an_image_that_pillow_would_not_give(
    by_pillow: Callable[[bytes], np.ndarray | None],
) -> None:
    draw = random.Random(0)
    taken = 0
    for data in PLAIN.values():
        for _ in range(100):
            damaged = damage(data, draw)
            if codecs.decode(damaged, MAX_PIXELS) is not None:
                taken += 1
                expected = by_pillow(damaged)
                assert expected is not None
                assert np.array_equal(decode(damaged), expected)
    assert taken > 100


def damage(data: bytes, draw: random.Random) -> bytes:
    """Cut a file off, flip a bit of it, take bytes out, or put some in."""
    changed, at = bytearray(data), draw.randrange(1, len(data))
    match draw.randrange(4):
        case 0:
            del changed[at:]
        case 1:
            changed[at] ^= 1 << draw.randrange(8)
        case 2:
            del changed[at : at + draw.randrange(1, 9)]
        case _:
            changed[at:at] = draw.randbytes(draw.randrange(1, 9))
    return bytes(changed)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(1600, 1200), (640, 4000), (1023, 513)])
def test_decodes_large_jpegs_coarsely_but_well(size: tuple[int, int], mode: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    photo = sample().resize(size)
    image = Image.blend(photo, Image.fromarray(noise), 0.3).convert(mode)
    data = encode(image, "JPEG", quality=85)
    full = Image.open(io.BytesIO(data)).convert("RGB").resize((32, 32))
    assert 0 < np.abs(decode(data).astype(int) - np.asarray(full)).max() <= 4
