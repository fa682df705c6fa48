"""Answers that tell why: TorchServe's /explanations, and `:explain` of KServe's protocol v1.

    a file              → {"label": …, "probability": …, "map": […]}
    {"instances": […]}  → {"explanations": [{"label": …, "probability": …, "map": […]}, …]}

A map has a value in [-1, 1] for each of the 32×32 pixels that the net sees (see `Explainer.map`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import numpy as np

from handler import answer
from handler.question import File, Instances
from model import ExplanationError, ImageError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from handler.answer import Answer
    from handler.question import Image, Question, Rows
    from model import Classifier

logger = logging.getLogger(__name__)

MOST_IMAGES = 4
"""Images that one request may have explained: each takes as long as about a hundred predictions."""
DIGITS = 4
"""Decimals of a map's values: a picture of it shows no more."""


@dataclass(frozen=True)
class Explanation:
    """A question that asks why, too."""

    asked: File | Instances

    @property
    def images(self) -> Sequence[Image]:
        """The images that it asks about."""
        return self.asked.images

    def answer(self, classifier: Classifier, rows: Rows) -> Answer:
        """Answer with each image's likeliest label, its probability and a map of 32 × 32 values."""
        try:
            told = [_explain(classifier, *pair) for pair in zip(self.images, rows, strict=True)]
        except ExplanationError as error:
            return answer.error(HTTPStatus.NOT_IMPLEMENTED, str(error))
        except WeightsError as error:
            return answer.error(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        except Exception as error:  # as of a net that captum can't differentiate: others go on
            logger.exception("an explanation failed")
            return answer.error(
                HTTPStatus.INTERNAL_SERVER_ERROR, f"no explanation: {type(error).__name__}: {error}"
            )
        if isinstance(self.asked, Instances):
            return answer.ok({"explanations": told}, indent=False)
        if "error" in told[0]:
            return answer.error(HTTPStatus.BAD_REQUEST, told[0]["error"])
        return answer.ok(told[0], indent=False)


def explain(question: Question) -> Explanation:
    """Return the question that asks why, too.

    Raises:
        ImageError: it is asked in a form that has no such answer, or of too many images.
    """
    if not isinstance(question, File | Instances):
        raise ImageError('explanations take an image file, or JSON with "instances"')
    if len(question.images) > MOST_IMAGES:
        raise ImageError(
            f'"instances" holds {len(question.images)} images: send 1 to {MOST_IMAGES} to explain'
        )
    return Explanation(question)


def _explain(classifier: Classifier, image: Image, row: Any) -> dict[str, Any]:
    if isinstance(image, ImageError):
        return {"error": str(image)}
    index = int(row.argmax())
    heat = classifier.explain(image, index).astype(np.float64).round(DIGITS)
    return {
        "label": classifier.labels[index],
        "probability": float(row[index]),
        "map": heat.tolist(),
    }
