"""The OpenAPI 3.1 description of what a running server serves."""

from __future__ import annotations

import base64
import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from PIL import Image

from ..archiving import bundle, store

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..releasing.listing import Served

DESCRIPTION = Path(__file__).with_name("openapi.yaml")
EXAMPLE_SIDE = 48
"""Pixels a side of the image in examples: its base64 should not fill the page."""


def describe(served: Iterable[Served], samples: Iterable[Path] = ()) -> dict[str, Any]:
    """Return the description, with the models and versions that are served.

    Args:
        served: what is served.
        samples: image files; the first that can be read is shown in the examples of JSON bodies.

    Raises:
        ArchiveError: this is not the project's folder, whose net's size is told.
    """
    text = DESCRIPTION.read_text()
    # Not by its name: who starts `classifier` has it in this folder, where Python does not look.
    size = bundle.import_package(Path("model"), "this folder").image.SIZE
    for name, pixels in zip(("WIDTH", "HEIGHT"), size, strict=True):
        text = text.replace(name, str(pixels))
    told: dict[str, Any] = yaml.safe_load(text)
    components, models = told["components"], list(served)
    if models:
        parameters, first = components["parameters"], models[0]
        _offer(parameters["model"], [model.name for model in models], first.name)
        versions = store.in_order({v for model in models for v in model.versions})
        _offer(parameters["version"], versions, first.default)
    for sample in samples:
        with contextlib.suppress(OSError, ValueError):
            _show(components["schemas"], _thumbnail(sample))
            break
    return told


def _offer(parameter: dict[str, Any], values: list[str], example: str) -> None:
    parameter["schema"]["enum"] = values
    parameter["example"] = example


def _show(schemas: dict[str, Any], image: str) -> None:
    """Let the examples of JSON bodies hold a real image."""
    instances = {"instances": [{"b64": image}]}
    files = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [image]}
    for name in ("Instances", "FewInstances"):
        schemas[name]["examples"] = [instances]
    schemas["InferRequest"]["examples"] = [{"id": "mine", "inputs": [files]}]


def _thumbnail(image: Path) -> str:
    """Return a small JPEG of an image file, in base64."""
    with Image.open(image) as opened:
        small, file = opened.convert("RGB"), io.BytesIO()
    small.resize((EXAMPLE_SIDE, EXAMPLE_SIDE)).save(file, "JPEG", quality=60)
    return base64.b64encode(file.getvalue()).decode()
