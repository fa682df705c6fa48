"""What one request of a batch asks, in TorchServe's terms: its parts and its headers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model.image import ImageError

if TYPE_CHECKING:
    from collections.abc import Mapping


def image_of(parts: Mapping[str, Any]) -> bytes:
    """Return the bytes of the one image that a request carries.

    Args:
        parts: what TorchServe made of the body: bytes, text or parsed JSON by part name, which
            is `body`, or the name of a form's field; any name will do.

    Raises:
        ImageError: no part, several parts, or one that TorchServe took for text or JSON.
    """
    if not parts:
        raise ImageError("the request holds no image: send one as the body or as a form's field")
    if len(parts) > 1:
        names = ", ".join(sorted(parts))
        raise ImageError(f"the request has {len(parts)} parts ({names}): send one image a request")
    (value,) = parts.values()
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    kind = "text" if isinstance(value, str) else "JSON"
    raise ImageError(f"the request holds {kind}, not an image: send the bytes of an image file")


def asks(headers: Mapping[str, str], what: str) -> bool:
    """Tell whether TorchServe marked a request: `describe` or `explain`.

    A client can send the same header to the predictions endpoint, so it is read for each
    request: reading only the first, as TorchServe's base handler does, would break a batch.
    """
    return headers.get(what) == "True"
