"""Preprocessing: every format and mode that is promised, and what is refused."""

from __future__ import annotations

import io
import struct
from zlib import compress

import numpy as np
import pytest
from PIL import Image, ImageOps

from model.image import MAX_EDGE, MAX_PIXELS, ImageError, decode, normalise

from .images import chunk, encode, rescanned, sample


def expected(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((32, 32)))


def test_decodes_to_pil_s_own_resize_of_the_pixels() -> None:
    pixels = decode(encode(sample()))
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, expected(sample()))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_decodes_each_format(kind: str) -> None:
    pixels = decode(encode(sample(), kind)).astype(int)
    assert np.abs(pixels - expected(sample())).mean() < 8  # JPEG, WebP and GIF lose something


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_decodes_each_mode(mode: str) -> None:
    image = sample().convert(mode)
    pixels = decode(encode(image, "TIFF" if mode == "CMYK" else "PNG")).astype(int)
    assert np.abs(pixels - expected(image.convert("RGB"))).max() <= 1


def test_takes_the_first_frame_of_an_animation() -> None:
    red, blue = (Image.new("RGB", (40, 40), colour) for colour in ("red", "blue"))
    data = encode(red, "GIF", save_all=True, append_images=[blue])
    assert tuple(decode(data)[16, 16]) == (255, 0, 0)


def test_blends_transparency_with_white() -> None:
    clear_black = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    half_red = Image.new("RGBA", (40, 40), (255, 0, 0, 128))
    assert (decode(encode(clear_black)) == 255).all()
    assert np.allclose(decode(encode(half_red))[0, 0], (255, 127, 127), atol=1)


def test_blends_the_transparent_colour_of_a_palette() -> None:
    image = Image.new("P", (40, 40), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert (decode(encode(image, "PNG", transparency=0)) == 255).all()


def test_blends_the_transparent_colour_of_rgb() -> None:
    black = Image.new("RGB", (40, 40))
    assert (decode(encode(black, "PNG", transparency=(0, 0, 0))) == 255).all()


def test_blends_the_transparent_value_of_16_bit_gray() -> None:
    gray = Image.fromarray(np.full((40, 40), 4660, np.uint16))
    assert (decode(encode(gray, "PNG", transparency=4660)) == 255).all()
    assert (decode(encode(gray, "PNG", transparency=4661)) == 18).all()


def png(bits: int, colours: int, row: bytes, transparent: bytes) -> bytes:
    """Lay out a PNG of 8×8 pixels that are all alike, with a transparent value."""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, colours, 0, 0, 0))
        + chunk(b"tRNS", transparent)
        + chunk(b"IDAT", compress((b"\0" + row) * 8))
        + chunk(b"IEND", b"")
    )


RGB_16 = struct.pack(">HHH", 0x0301, 0x0702, 0x0B03)


@pytest.mark.parametrize(
    ("bits", "colours", "row", "transparent", "other", "seen"),
    [
        (1, 0, b"\xff", b"\0\1", b"\0\0", (255, 255, 255)),
        (2, 0, b"\x55" * 2, b"\0\1", b"\0\x02", (85, 85, 85)),
        (4, 0, b"\x55" * 4, b"\0\5", b"\0\6", (85, 85, 85)),
        (8, 0, b"\x55" * 8, b"\0\x55", b"\0\5", (85, 85, 85)),
        (16, 2, RGB_16 * 8, RGB_16, struct.pack(">HHH", 0x0103, 0x0107, 0x010B), (3, 7, 11)),
    ],
)
def test_blends_the_transparent_value_of_any_depth(
    bits: int, colours: int, row: bytes, transparent: bytes, other: bytes, seen: tuple[int, ...]
) -> None:
    assert (decode(png(bits, colours, row, transparent)) == 255).all()
    assert (decode(png(bits, colours, row, other)) == seen).all()


def gray_tiff(bits: int, zero: int, value: int, sign: int = 1) -> bytes:
    """Lay out a TIFF of 8×8 gray pixels that are all alike."""
    if bits == 12:
        pixels = bytes((value >> 4, (value & 15) << 4 | value >> 8, value & 255)) * 32
    else:
        pixels = struct.pack("<H", value) * 64
    tags = {256: 8, 257: 8, 258: bits, 259: 1, 262: zero, 273: 8, 277: 1, 278: 8}
    tags |= {279: len(pixels), 339: sign}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, told) for tag, told in tags.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(pixels))
    return head + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_takes_gray_tiff_of_16_bits_whose_0_is_black() -> None:
    assert (decode(gray_tiff(16, 1, 48188)) == 188).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gray_tiff(12, 1, 3000), "save it with 16 bits, 0 as black"),
        (gray_tiff(16, 0, 48188), "save it with 16 bits, 0 as black"),
        (gray_tiff(16, 1, 48188, sign=2), "with a sign, have no known scale"),
    ],
    ids=["12 bits", "0 is white", "signed"],
)
def test_refuses_gray_tiff_of_another_scale(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(data)


def test_refuses_a_jpeg_whose_scans_take_longer_than_any_photo() -> None:
    large = Image.new("RGB", (6000, 6000), "red")
    assert (decode(rescanned(large, 10))[..., 0] > 250).all()
    with pytest.raises(ImageError, match="too many scans"):
        decode(rescanned(large, 20))
    with pytest.raises(ImageError, match="too many scans"):
        decode(rescanned(Image.new("RGB", (500, 500)), 4000))


@pytest.mark.parametrize(
    "piece", [b"\xff\xe1\0\x08Exif\0\0", b"\xff\xfe\0\2", b"\xff\xfe\0\0", b"\xff", b"\0"]
)
def test_refuses_a_jpeg_with_more_before_its_pixels_than_any_photo(piece: bytes) -> None:
    jpeg = encode(sample(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0")
    assert decode(jpeg[:20] + piece * 900 + jpeg[20:]).std() > 20
    with pytest.raises(ImageError, match="over 1,000 segments"):
        decode(jpeg[:20] + piece * 1000 + jpeg[20:])


def test_blends_a_large_image_as_if_it_were_not_made_smaller_first() -> None:
    photo = sample().resize((1501, 1103))
    opacity = Image.linear_gradient("L").resize(photo.size)
    photo.putalpha(opacity)
    white = Image.new("RGBA", photo.size, "white")
    blended = expected(Image.alpha_composite(white, photo).convert("RGB"))
    assert np.abs(decode(encode(photo)).astype(int) - blended).max() <= 4


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_refuses_pixels_of_32_bits(kind: type) -> None:
    image = Image.fromarray(np.full((40, 40), 200, kind))
    with pytest.raises(ImageError, match=r"pixels of 32 bits.* have no known scale"):
        decode(encode(image, "TIFF"))


def test_takes_the_picture_of_a_phone_with_more_than_one() -> None:
    data = encode(sample(), "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    assert np.abs(decode(data).astype(int) - expected(sample())).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_scales_16_bit_gray(kind: str) -> None:
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32)
    pixels = decode(encode(Image.fromarray(ramp.astype(np.uint16)), kind))
    assert np.abs(pixels[..., 0] - ramp / 257).max() <= 1


def test_honours_exif_orientation() -> None:
    upright = sample()
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    pixels = decode(encode(turned, "JPEG", exif=exif, quality=95)).astype(int)
    assert np.abs(pixels - expected(upright)).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_honours_each_orientation_as_pillow_does(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(sample(), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(decode(data), expected(ImageOps.exif_transpose(image)))


def test_takes_images_with_odd_exif() -> None:
    turned = struct.pack("<HHIHxx", 0x0112, 3, 1, 6)
    resolution = struct.pack("<HHI4s", 0x011A, 2, 4, b"abc")  # text, where a number belongs
    odd = b"II*\0" + struct.pack("<IH", 8, 2) + turned + resolution + bytes(4)
    pixels = decode(encode(sample(), exif=b"Exif\0\0" + odd))
    assert np.array_equal(pixels, expected(sample().transpose(Image.Transpose.ROTATE_270)))
    rubbish = decode(encode(sample(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert np.array_equal(rubbish, expected(sample()))


def test_refuses_too_many_pixels_before_decoding() -> None:
    side = int(MAX_PIXELS**0.5) + 1
    bomb = encode(Image.new("1", (side, side)))
    damaged = bomb[: len(bomb) // 2]  # the header tells the size; decoding would find the damage
    for data in (bomb, damaged):
        with pytest.raises(ImageError, match=rf"{side}×{side} pixels, more than"):
            decode(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_refuses_a_bomb_that_pillow_itself_refuses() -> None:
    with pytest.raises(ImageError, match="pixels"):
        decode(encode(Image.new("1", (20000, 20000))))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 20000), (20000, 1), (1, 1)])
def test_takes_any_shape(size: tuple[int, int], mode: str) -> None:
    assert decode(encode(Image.new(mode, size))).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no image"),
        (b"\x00\x01 no image", "not an image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
        (encode(sample())[:5000], "damaged"),
        (encode(sample(), "JPEG")[:5000], "damaged"),
    ],
)
def test_says_what_is_wrong_with_what_is_no_image(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(data)


def test_refuses_floats_whose_scale_is_unknown() -> None:
    with pytest.raises(ImageError, match="no known scale"):
        decode(encode(Image.new("F", (40, 40)), "TIFF"))


def test_refuses_formats_that_nobody_needs() -> None:
    with pytest.raises(ImageError, match="not an image"):
        decode(encode(sample(), "PPM"))


def test_normalises_to_minus_one_to_one() -> None:
    import torch

    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 32, 32, 3)
    inputs = normalise(pixels)
    assert inputs.shape == (2, 3, 32, 32)
    assert inputs[0].unique().tolist() == [-1]
    assert inputs[1].unique().tolist() == [1]


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_refuses_what_is_too_long_to_be_resized(mode: str) -> None:
    for size in ((MAX_EDGE + 1, 1), (1, MAX_EDGE + 1)):
        with pytest.raises(ImageError, match=r"or than 100,000 in a row or column"):
            decode(encode(Image.new(mode, size)))
    assert decode(encode(Image.new(mode, (MAX_EDGE, 1)))).shape == (32, 32, 3)
