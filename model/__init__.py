"""What defines the model: net, preprocessing, labels, weights. Knows nothing of any server."""

from .classifier import Classifier, LabelsError, load
from .engine import EngineError
from .explanation import ExplanationError
from .image import ImageError, decode
from .net import Net
from .weights import WeightsError

__all__ = [
    "Classifier",
    "EngineError",
    "ExplanationError",
    "ImageError",
    "LabelsError",
    "Net",
    "WeightsError",
    "decode",
    "load",
]
