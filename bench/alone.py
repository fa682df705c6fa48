"""What an engine does by itself, in this process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray


def rate(
    classify: Callable[[NDArray[np.uint8]], object], pixels: NDArray[np.uint8], seconds: float
) -> float:
    """Return how many images a second are classified, given these again for so many seconds."""
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        classify(pixels)
        count += len(pixels)
    return count / (time.perf_counter() - begin)
