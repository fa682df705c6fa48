"""What people send, and worse: requests by kind, each with what must come back."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image

from ..images import chunk, encode, rescanned, sample

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

MODEL = "/predictions/cifar10"
FRONT_END = {
    "multipart with an empty boundary": 500,
    "multipart with a part without a name": 500,
    "a form that is none": 500,
    "an unknown expectation": 417,
    "too large": 413,
}
"""What TorchServe's own front end answers, with a status or in a form that is not ours to choose:
it parses bodies before any handler sees them, and has no setting for that."""

INTACT = {"good", "wrong content type", "multipart of one part", "odd header", "animation"}
"""Kinds whose image is undamaged, so that any decoder sees the same in it."""

ALONE = {"Connection": "close"}
"""With requests whose body TorchServe leaves unread: it would take that for the next request."""


@dataclass(frozen=True)
class Request:
    """One request, and what must come back.

    Attributes:
        kind: of request; the front end's own answers are told by it.
        body: what is sent.
        image: the bytes that a handler makes an image of; None where there must be a 4xx.
    """

    kind: str
    body: bytes = b""
    image: bytes | None = None
    path: str = MODEL
    headers: dict[str, str] = field(default_factory=dict)


def good(draw: random.Random) -> Request:
    """Draw a request as it should be: a part of the photo, in any format."""
    data = encode(_crop(draw), draw.choice(("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")))
    return Request("good", data, data)


def bad(draw: random.Random) -> Request:
    """Draw a request as it should not be."""
    return draw.choice(KINDS)(draw)


def _crop(draw: random.Random) -> Image.Image:
    photo = sample()
    width, height = draw.randint(8, 300), draw.randint(8, 300)
    left, top = draw.randint(0, photo.width - width), draw.randint(0, photo.height - height)
    return photo.crop((left, top, left + width, top + height))


def _plain(kind: str, data: bytes, **options: str) -> Request:
    """Return a request whose body is taken as an image, whatever it is."""
    return Request(kind, data, data, headers=dict(options))


def truncated(draw: random.Random) -> Request:
    data = good(draw).body
    return _plain("truncated", data[: draw.randrange(1, len(data))])


def flipped(draw: random.Random) -> Request:
    data = bytearray(good(draw).body)
    for _ in range(draw.randint(1, 20)):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return _plain("bits flipped", bytes(data))


def noise(draw: random.Random) -> Request:
    head = draw.choice(
        (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF", b"II*\0")
    )
    return _plain("random bytes", head + draw.randbytes(draw.randint(1, 5000)))


def empty(draw: random.Random) -> Request:
    return Request("empty")


def mislabelled(draw: random.Random) -> Request:
    kind = draw.choice(
        ("text/plain", "image/gif", "application/octet-stream", "nonsense", "a/b; c")
    )
    return _plain("wrong content type", good(draw).body, **{"Content-Type": kind})


def undecodable_json(draw: random.Random) -> Request:
    body = draw.choice((b"{", b"[" * 100_000, b'{"a": ', b"\xff\xfe{}", b"nul", b'"\\ud800"'))
    return Request("JSON that is none", body, headers={"Content-Type": "application/json"})


def json(draw: random.Random) -> Request:
    body = draw.choice(
        (b"{}", b"[]", b"null", b'{"data": "x"}', b"1e999", b'{"a":' * 50 + b"1" + b"}" * 50)
    )
    return Request("JSON", body, headers={"Content-Type": "application/json"})


def markup(draw: random.Random) -> Request:
    text = draw.choice(("<svg xmlns='http://www.w3.org/2000/svg'/>", "<html><body>x</body></html>"))
    kind = draw.choice(("image/svg+xml", "text/html", "application/octet-stream"))
    return Request(
        "SVG or HTML", text.encode() * draw.randint(1, 50), headers={"Content-Type": kind}
    )


def multipart(draw: random.Random) -> Request:
    """Draw a form: its parts, and how well its boundary is told."""
    image, boundary = encode(_crop(draw)), f"b{draw.randrange(10**9)}"
    count = draw.choice((0, 1, 2, 3))
    parts = [_part(boundary, f"part{i}", image) for i in range(count)]
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    told = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    if count == 1:
        return Request("multipart of one part", body, image, headers=told)
    return Request(f"multipart of {count} parts", body, headers=told)


def broken_multipart(draw: random.Random) -> Request:
    image, boundary = encode(_crop(draw)), "b"
    whole = _part(boundary, "data", image) + b"--b--\r\n"
    told = "multipart/form-data; boundary=b"
    kind, body, content_type = draw.choice(
        (
            ("multipart without a boundary", whole, "multipart/form-data"),
            ("multipart with an empty boundary", whole, "multipart/form-data; boundary="),
            ("multipart with another boundary", whole, "multipart/form-data; boundary=c"),
            ("multipart that is cut off", whole[: len(whole) // 2], told),
            ("multipart with a part without a name", whole.replace(b'; name="data"', b""), told),
        )
    )
    return Request(kind, body, headers={"Content-Type": content_type})


def _part(boundary: str, name: str, data: bytes) -> bytes:
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n'
    return head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + data + b"\r\n"


def form(draw: random.Random) -> Request:
    body = draw.choice((b"a=1&b=%zz", b"%", good(draw).body))
    kind = "application/x-www-form-urlencoded"
    return Request("a form that is none", body, headers={"Content-Type": kind})


def bomb(draw: random.Random) -> Request:
    """Draw a small file of a huge image: PNG that is zeros, or a header that promises as much."""
    side = draw.choice((8_000, 30_000, 2**31 - 1))
    rows = zlib.compress(bytes(1_000_000), 9)
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    gif = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + bytes(9) + b"\x02\x00;"
    data = draw.choice((png, gif))
    return Request("decompression bomb", data, headers={"Content-Type": "image/png"})


@functools.cache
def _laborious() -> tuple[bytes, bytes]:
    """Lay out two JPEGs that would keep a reader busy: with many scans, and with many notes."""
    plain = encode(sample(), "JPEG")
    scans = rescanned(Image.new("RGB", (7000, 7000), "red"), 700)
    return scans, plain[:2] + b"\xff\xe1\0\x08Exif\0\0" * 100_000 + plain[2:]


def laborious(draw: random.Random) -> Request:
    return _plain("JPEG of much work", draw.choice(_laborious()))


def strip(draw: random.Random) -> Request:
    size = draw.choice(((1, 20_000), (20_000, 1)))
    kind = draw.choice(("PNG", "JPEG", "GIF", "TIFF"))  # a WebP has 16,383 pixels a side at most
    return _plain("one pixel wide", encode(sample().resize(size), kind))


def animation(draw: random.Random) -> Request:
    frames = [_crop(draw).resize((64, 48)) for _ in range(draw.randint(2, 20))]
    buffer = io.BytesIO()
    kind = draw.choice(("GIF", "WEBP", "PNG", "TIFF"))
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return _plain("animation", buffer.getvalue())


def exif(draw: random.Random) -> Request:
    """Draw a JPEG or PNG with much EXIF, in order or not."""
    tags = Image.Exif()
    tags[0x0112] = draw.choice((1, 3, 6, 8, 99))
    tags[0x010E] = "x" * draw.randint(1, 60_000)
    data = tags.tobytes()
    if draw.random() < 0.5:
        data = data[:8] + draw.randbytes(40) + data[48:]
    kind = draw.choice(("JPEG", "PNG"))
    return _plain("huge EXIF", encode(_crop(draw), kind, exif=data))


def header(draw: random.Random) -> Request:
    name, value = draw.choice(
        (
            ("describe", "True"),
            ("explain", "True"),
            ("Content-Encoding", "gzip"),
            ("X-Warm-Up", "1"),
            ("ts_request_sequence_id", "x"),
            ("X-Forwarded-For", "x" * 4000),
        )
    )
    return _plain("odd header", good(draw).body, **{name: value})


def expectation(draw: random.Random) -> Request:
    return Request(
        "an unknown expectation", good(draw).body, headers={"Expect": "nonsense"} | ALONE
    )


def version(draw: random.Random) -> Request:
    odd = draw.choice(
        (
            "abc",
            "1",
            "1.0.0",
            "-1",
            "2.0",
            "%00",
            "..",
            "1.0%20",
            "v1.0",
            "9" * 3000,
            "%F0%9F%98%80",
            "None",
        )
    )
    return Request("odd version", good(draw).body, path=f"{MODEL}/{odd}")


def too_large(draw: random.Random) -> Request:
    return Request("too large", bytes(16 * 2**20 + 1))


KINDS: list[Callable[[random.Random], Request]] = [
    truncated,
    truncated,
    truncated,
    flipped,
    flipped,
    flipped,
    noise,
    noise,
    empty,
    mislabelled,
    undecodable_json,
    json,
    markup,
    multipart,
    multipart,
    broken_multipart,
    broken_multipart,
    form,
    bomb,
    laborious,
    strip,
    animation,
    exif,
    header,
    header,
    expectation,
    version,
    version,
]
"""All but `too_large`, of which a few are enough: each is 16 MiB."""
