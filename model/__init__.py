"""What defines the model: net, preprocessing, labels, weights. Knows nothing of any server."""

from .classifier import Classifier, LabelsError, load
from .engine import EngineError
from .image import ImageError, decode
from .net import Net
from .weights import WeightsError

__all__ = [
    "Classifier",
    "EngineError",
    "ImageError",
    "LabelsError",
    "Net",
    "WeightsError",
    "decode",
    "load",
]
