"""What schemathesis sends where the description says "an image file": images, and other bytes."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import strategies

from .images import SAMPLE, crops

IMAGES = [SAMPLE.read_bytes(), *crops(3)]

schemathesis.openapi.format("binary", strategies.sampled_from(IMAGES) | strategies.binary())


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> bool:
    """Leave out forms with other fields than told: to one without a name TorchServe says 500."""
    is_form = case.media_type == "multipart/form-data"
    return not is_form or (isinstance(case.body, dict) and set(case.body) <= {"data"})
