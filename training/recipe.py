"""The recipe: every number that decides what the weights become."""

from __future__ import annotations

import math
from dataclasses import dataclass

FEWEST_STEPS = 2000
"""Steps that a training set is given even if it is small."""


@dataclass(frozen=True)
class Recipe:
    """How the net is trained. The defaults are those of the released weights.

    Nesterov SGD with a one-cycle learning rate, weight decay on weights but not on norms and
    biases, label smoothing, flips, reflected shifts, JPEG artefacts and cutout, lighter dropout
    than the net's own defaults, and an average of the weights over time.
    """

    epochs: int = 60
    batch: int = 256
    peak_rate: float = 0.2
    warmup: float = 0.2  # the part of all steps in which the learning rate rises
    momentum: float = 0.9
    decay: float = 5e-4
    smoothing: float = 0.1
    dropout: tuple[float, float, float, float] = (0.05, 0.05, 0.1, 0.2)
    jpeg: float = 0.5  # the share of images that are shown as JPEGs of some quality
    cutout: int = 8  # edge, in pixels, of the square that is blanked in each image
    averaging: float = 0.998  # what the average keeps of itself at each step
    seed: int = 0

    @classmethod
    def for_images(cls, count: int, epochs: int | None = None) -> Recipe:
        """Return the recipe for a training set of so many images; for CIFAR-10 the default one.

        A small set gets small batches, a rate to match, and more epochs where none are asked for;
        a short run averages over fewer steps, so that its beginning is forgotten.
        """
        batch = min(cls.batch, count, max(16, count // 20))
        steps = count // batch
        epochs = epochs or max(cls.epochs, math.ceil(FEWEST_STEPS / steps))
        return cls(
            epochs=epochs,
            batch=batch,
            peak_rate=cls.peak_rate * batch / cls.batch,
            averaging=max(0.0, min(cls.averaging, 1 - 10 / (epochs * steps))),
        )

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step in [0, steps): up to the peak, then down to 0."""
        done = (step + 1) / steps
        if done < self.warmup:
            return self.peak_rate * done / self.warmup
        return self.peak_rate * (1 - done) / (1 - self.warmup)
