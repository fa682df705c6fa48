"""What one request asks, and the answer to it: images in, one of three forms out.

    a file, as the body or as a form's field      → the five likeliest labels
    {"instances": [{"b64": …}, …]}                → {"predictions": […]}, KServe's protocol v1
    {"inputs": [{"datatype": "BYTES", …}]}        → {"outputs": […]}, the open inference protocol v2

Of several images each is by itself: what is wrong with one is said in its place.
"""

from __future__ import annotations

import binascii
import time
from base64 import b64decode
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from handler import answer
from model import ImageError, decode
from model.image import SHAPE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence, Sized

    from numpy.typing import NDArray

    from handler.answer import Answer
    from model import Classifier

    Image = NDArray[np.uint8] | ImageError
    """uint8 32×32×3 RGB, or why there is none."""
    Rows = Sequence[NDArray[np.float32] | None]
    """Of each image the probabilities; None where there was none to classify."""

_PIXELS = f"[N, {', '.join(map(str, SHAPE))}]"
"""The shape that a tensor of pixels must have."""
MOST_IMAGES = 64
"""Images that one request may hold: so it can't make others wait for long."""
MOST_SECONDS = 3.0
"""How long the images of one request may take to decode; 64 photos of 2 megapixels take 0.3 s.

The last of them may take some seconds more: a file of some kilobytes may hold 50 megapixels of one
colour or 20 scans of them, and one of 16 MiB a million pieces besides its pixels.
"""


class Question(Protocol):
    """What one request asks."""

    @property
    def images(self) -> Sequence[Image]:
        """The images that it asks about."""

    def answer(self, classifier: Classifier, rows: Rows) -> Answer:
        """Return the answer.

        Args:
            classifier: whose labels are told.
            rows: for each image its probabilities; None where there was none to classify.
        """


@dataclass(frozen=True)
class File:
    """One image file."""

    images: Sequence[Image]

    def answer(self, classifier: Classifier, rows: Rows) -> Answer:
        """Answer with the likeliest labels and their probabilities."""
        (image,), (row,) = self.images, rows
        if row is None:
            return answer.error(HTTPStatus.BAD_REQUEST, str(image))
        return answer.ok(classifier.top(row))


@dataclass(frozen=True)
class Instances:
    """A body of KServe's protocol v1."""

    images: Sequence[Image]

    def answer(self, classifier: Classifier, rows: Rows) -> Answer:
        """Answer with a prediction for each instance, or with what is wrong with it."""
        predictions: list[dict[str, Any]] = []
        for image, row in zip(self.images, rows, strict=True):
            if row is None:
                predictions.append({"error": str(image)})
            else:
                top = classifier.top(row)
                predictions.append({"label": next(iter(top)), "probabilities": top})
        return answer.ok({"predictions": predictions})


@dataclass(frozen=True)
class Tensors:
    """A body of the open inference protocol v2.

    Attributes:
        identity: what the client calls its request; it is sent back.
        model, version: that answer.
    """

    images: Sequence[Image]
    identity: str | None
    model: str
    version: str

    def answer(self, classifier: Classifier, rows: Rows) -> Answer:
        """Answer with the tensors `label`, `probabilities` and `error`: N, N×classes and N.

        Where there is an error, the label is empty and the probabilities are 0.
        """
        count, classes = len(rows), len(classifier.labels)
        nothing = [0.0] * classes
        labels = ["" if r is None else classifier.labels[int(r.argmax())] for r in rows]
        errors = [
            str(image) if row is None else "" for image, row in zip(self.images, rows, strict=True)
        ]
        flat = [value for row in rows for value in (nothing if row is None else row.tolist())]
        said = {"model_name": self.model, "model_version": self.version}
        if self.identity is not None:
            said["id"] = self.identity
        outputs = [
            _tensor("label", "BYTES", [count], labels),
            _tensor("probabilities", "FP32", [count, classes], flat),
            _tensor("error", "BYTES", [count], errors),
        ]
        return answer.ok(said | {"outputs": outputs}, indent=False)


def read(parts: Mapping[str, Any], model: str, version: str) -> Question:
    """Return what a request asks.

    Args:
        parts: what TorchServe made of the body: bytes, text or parsed JSON by part name, which is
            `body`, or the name of a form's field; any name will do.
        model: which answers.
        version: of the model.

    Raises:
        ImageError: it asks nothing that can be answered; the message says why and what to send.
    """
    if not parts:
        raise ImageError("the request holds no image: send one as the body or as a form's field")
    if len(parts) > 1:
        names = ", ".join(sorted(parts))
        raise ImageError(f"the request has {len(parts)} parts ({names}): send one image a request")
    (value,) = parts.values()
    if isinstance(value, (bytes, bytearray)):
        return File([_decode(bytes(value))])
    if isinstance(value, dict) and isinstance(value.get("instances"), list):
        return Instances(_each(_instance, value["instances"], "instances"))
    if isinstance(value, dict) and isinstance(value.get("inputs"), list):
        identity = value.get("id")
        images = _tensor_images(value["inputs"])
        return Tensors(images, identity if isinstance(identity, str) else None, model, version)
    kind = "text" if isinstance(value, str) else "JSON"
    raise ImageError(
        f"the request holds {kind}, not an image: send the bytes of an image file, or JSON with "
        '"instances" or "inputs"'
    )


def _decode(data: bytes) -> Image:
    try:
        return decode(data)
    except ImageError as error:
        return error


def _check_count(items: Sized, where: str) -> None:
    if not 0 < len(items) <= MOST_IMAGES:
        raise ImageError(f'"{where}" holds {len(items)} images: send 1 to {MOST_IMAGES}')


def _each(decode: Callable[[Any], Image], items: list[Any], where: str) -> list[Image]:
    """Decode images one by one, until that takes too long; what is left then is refused."""
    _check_count(items, where)
    end = time.monotonic() + MOST_SECONDS
    late = ImageError(f"the images before it took {MOST_SECONDS:g} s to decode: send fewer at once")
    return [decode(item) if time.monotonic() < end else late for item in items]


def _instance(item: Any) -> Image:
    """Decode an instance: {"b64": …}, or that under a name, as TensorFlow's clients write it."""
    if isinstance(item, dict) and len(item) == 1 and "b64" not in item:
        (item,) = item.values()
    if not isinstance(item, dict) or "b64" not in item:
        return ImageError('an instance must be {"b64": "…"}, an image file in base64')
    return _base64(item["b64"])


def _base64(text: Any) -> Image:
    try:
        return _decode(b64decode("".join(text.split()), validate=True))  # some encoders break lines
    except (binascii.Error, AttributeError, ValueError):
        return ImageError("this is no base64: encode the bytes of an image file")


def _tensor_images(inputs: list[Any]) -> list[Image]:
    """Return the images of the one input of a v2 request.

    Raises:
        ImageError: there are several inputs, or this one is neither files nor pixels.
    """
    if len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise ImageError('"inputs" must hold one tensor')
    datatype, shape, data = (inputs[0].get(key) for key in ("datatype", "shape", "data"))
    if datatype == "BYTES" and isinstance(data, list):
        _check_shape(shape, data)
        return _each(_base64, data, "data")
    if datatype == "UINT8" and isinstance(data, list):
        pixels = _pixels(shape, data)
        _check_count(pixels, "data")
        return list(pixels)
    raise ImageError(
        'the input must have "datatype" "BYTES", and image files in base64 as "data"; or "UINT8", '
        f'and pixels of "shape" {_PIXELS}'
    )


def _check_shape(shape: Any, data: list[Any]) -> None:
    """Fail where a tensor of files is told to be of another shape; a shape need not be told."""
    if shape not in (None, [len(data)], [len(data), 1]):
        # What it is isn't said: told again, it could be longer than a worker may answer.
        raise ImageError(f'"shape" must be [{len(data)}]: "data" holds so many files')


def _pixels(shape: Any, data: list[Any]) -> NDArray[np.uint8]:
    try:
        # As objects, for of other texts NumPy makes each as long as the longest.
        wide = np.array(data, dtype=object).reshape(shape)
    except (TypeError, ValueError, OverflowError):
        raise ImageError(f'"data" does not fit "shape", which must be {_PIXELS}') from None
    if wide.shape[1:] != SHAPE:
        raise ImageError(f'"shape" is {list(wide.shape)}, and must be {_PIXELS}')
    if wide.size and (set(map(type, wide.flat)) != {int} or wide.min() < 0 or wide.max() > 255):
        raise ImageError('"data" must be whole numbers in 0 to 255')
    return wide.astype(np.uint8)


def _tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}
