"""What defines the model: net, preprocessing, labels, weights. Knows nothing of any server.

The net itself is in `model.net`, which imports torch; nothing here does before it is needed.
"""

from .classifier import Classifier, ExplanationError, LabelsError, load
from .engine import EngineError
from .image import ImageError, decode
from .weights import WeightsError

__all__ = [
    "Classifier",
    "EngineError",
    "ExplanationError",
    "ImageError",
    "LabelsError",
    "WeightsError",
    "decode",
    "load",
]
