"""What defines the model: net, preprocessing, labels, weights. Knows nothing of any server."""

from .classifier import Classifier, LabelsError, load
from .image import ImageError, decode
from .net import Net
from .weights import WeightsError

__all__ = ["Classifier", "ImageError", "LabelsError", "Net", "WeightsError", "decode", "load"]
