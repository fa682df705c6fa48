"""What an answer rests on: a heat map of the image, by integrated gradients on the float net.

Sundararajan et al., "Axiomatic Attribution for Deep Networks", 2017; computed by Captum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from captum.attr import IntegratedGradients
from torch.nn.functional import avg_pool2d

from .image import SIZE, normalise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .net import Net

BLUR = 2 * max(SIZE) // 5 | 1
"""Edge, in pixels, of the box whose mean replaces each pixel of the image compared with: large
enough that the net recognises nothing in it, and of the same colours as the image."""
NOTHING = 1e-5
"""What is no more than this is rounding: an image of one colour has nothing to show."""
STEPS = 8
"""Images between the blurred one and the given one; twice as many hardly change the map."""


class Explainer:
    """Explains what the float net makes of an image.

    Args:
        net: in evaluation mode, on the CPU.
        threads: torch's own choice if None. They are the whole process's.
    """

    def __init__(self, net: Net, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._attribute = IntegratedGradients(net).attribute

    def map(self, pixels: NDArray[np.uint8], label: int) -> NDArray[np.float32]:
        """Tell how much each pixel speaks for a label.

        Args:
            pixels: uint8 32×32×3 RGB.
            label: index of one of the net's outputs.

        Returns:
            float32 32×32 in [-1, 1]: above 0 what speaks for the label, below 0 what speaks
            against it; the largest is 1 or -1. All 0 for an image of one colour.
        """
        image = normalise(torch.tensor(np.ascontiguousarray(pixels)[None]))
        blurred = blur(image)
        values = self._attribute(image, blurred, target=label, n_steps=STEPS)[0].sum(dim=0)
        largest = values.abs().max()
        heat: NDArray[np.float32] = (values / largest * (largest > NOTHING)).nan_to_num().numpy()
        return heat


def blur(images: torch.Tensor) -> torch.Tensor:
    """Return float N×C×H×W images with each pixel the mean of those around it."""
    return avg_pool2d(images, BLUR, stride=1, padding=BLUR // 2, count_include_pad=False)
