"""A comparison as one HTML file, with the pictures in it: nothing else is needed to look at it."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from ..predicting.pictures import Source
from ..predicting.prediction import orientation
from .comparison import changes, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..predicting.prediction import Prediction
    from .comparison import Comparison, Difference

MOST = 200
"""Pictures that are shown at most."""
EDGE = 128
"""Pixels of the longer side of a picture that is shown."""
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } th, td { padding: .2rem .8rem; text-align: right }
th { border-bottom: 1px solid #888 } td:first-child, th:first-child { text-align: left }
figure { display: inline-block; margin: .5rem; width: 11rem; vertical-align: top }
img { width: 8rem; image-rendering: pixelated }
figcaption { font-size: .85rem; overflow-wrap: anywhere }
.right { font-weight: bold }
"""


def page(found: Comparison) -> str:
    """Return the HTML of a report."""
    head, *rows = table(found)
    figures = "".join(map(_figure, found.differences[:MOST]))
    left = len(found.differences) - MOST
    more = f"<p>{left:,} more are not shown.</p>" if left > 0 else ""
    title = f"{found.old.name} and {found.new.name}"
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1>"
        f"<p>{found.pictures:,} pictures were answered by both; "
        f"on {found.agreement:.2%} they agree.</p>"
        f"{_table(head, rows)}<h2>Where they differ</h2>{_changes(found)}{figures}{more}</html>\n"
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    def line(cells: tuple[str, ...], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _changes(found: Comparison) -> str:
    if not found.changes:
        return "<p>Nowhere.</p>"
    head, *rows = changes(found)
    return _table(head, rows)


def _figure(difference: Difference) -> str:
    def said(prediction: Prediction) -> str:
        right = ' class="right"' if prediction.label == difference.label else ""
        text = f"{prediction.version}: {prediction.label} {prediction.probability:.0%}"
        return f"<span{right}>{escape(text)}</span><br>"

    truth = f"<br>{escape(difference.label)} by its folder" if difference.label else ""
    return (
        f'<figure><img alt="" src="{_data(difference.image)}"><figcaption>'
        f"{said(difference.old)}{said(difference.new)}"
        f"{escape(difference.image)}{truth}</figcaption></figure>"
    )


def _data(name: str) -> str:
    """Return a small picture as a data: address; an empty one where it can't be had."""
    file = io.BytesIO()
    try:
        with Image.open(io.BytesIO(Source(name).read())) as image:
            _small(image).save(file, "PNG")
    except Exception:  # whatever Pillow makes of a file: the report is worth more than a picture
        return ""
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _small(image: Image.Image) -> Image.Image:
    """Return a small picture as the versions have seen it: on white, in 8 bits, and upright."""
    image.load()
    small = _flat(image)
    small.thumbnail((EDGE, EDGE))
    small.info["exif"] = orientation(image).tobytes()  # that alone: Pillow may fail on the rest
    return ImageOps.exif_transpose(small)


def _flat(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    over = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
