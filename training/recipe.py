"""The recipe: every number that decides what the weights become."""

from __future__ import annotations

import math
from dataclasses import dataclass

FEWEST_STEPS = 2000
"""Steps that a training set is given even if it is small."""
LARGE = 40_000
"""A training set of so many images is given a teacher."""


def one_cycle(peak: float, warmup: float, step: int, steps: int) -> float:
    """Return the learning rate of a step in [0, steps): up to the peak, then down to 0.

    Args:
        peak: the highest rate.
        warmup: the part of all steps, in (0, 1), in which it rises.
        step: which one.
        steps: how many there are.
    """
    done = (step + 1) / steps
    return peak * (done / warmup if done < warmup else (1 - done) / (1 - warmup))


@dataclass(frozen=True)
class Recipe:
    """How a net is trained. The defaults are those of a run without a teacher.

    Nesterov SGD with a one-cycle learning rate, weight decay on weights but not on norms and
    biases, label smoothing, flips, reflected shifts, JPEG artefacts and cutout, lighter dropout
    than the net's own defaults, and an average of the weights over time.

    With a teacher, a larger net that is trained first, the net learns to answer what that one
    answers (Hinton et al., 2015): to the same view of the same image, over many epochs, and to
    blends of images (Beyer et al., 2022).
    """

    epochs: int = 60
    batch: int = 256
    peak_rate: float = 0.2
    warmup: float = 0.2  # the part of all steps in which the learning rate rises
    momentum: float = 0.9
    decay: float = 5e-4
    smoothing: float = 0.1
    dropout: tuple[float, float, float, float] = (0.05, 0.05, 0.1, 0.2)
    mixing: float = 0  # the share of images that are blended with another one
    cutout: int = 8  # edge, in pixels, of the square that is blanked in each image
    jpeg: float = 0.5  # the share of images that are shown as JPEGs of some quality
    averaging: float = 0.998  # what the average keeps of itself at each step
    imitation: float = 0  # the part of the loss that is how far the answer is from the teacher's
    teacher: Recipe | None = None
    seed: int = 0

    @classmethod
    def for_images(cls, count: int, epochs: int | None = None) -> Recipe:
        """Return the recipe for a training set of so many images; for CIFAR-10 the released one.

        A small set has no teacher, small batches, rates to match, and more epochs where none are
        asked for. A run of so many epochs has no teacher either; a short one averages over fewer
        steps, so that its beginning is forgotten.
        """
        if epochs is None and count >= LARGE:
            return RELEASED
        batch = min(cls.batch, count, max(16, count // 20))
        steps = count // batch
        epochs = epochs or max(cls.epochs, math.ceil(FEWEST_STEPS / steps))
        return cls(
            epochs=epochs,
            batch=batch,
            peak_rate=cls.peak_rate * batch / cls.batch,
            averaging=max(0.0, min(cls.averaging, 1 - 10 / (epochs * steps))),
        )


TEACHER = Recipe(epochs=75, smoothing=0, dropout=(0, 0, 0, 0), jpeg=0)
"""How the teacher of the released weights was trained."""

RELEASED = Recipe(
    epochs=160,
    smoothing=0,
    dropout=(0, 0, 0, 0),
    mixing=0.5,
    cutout=0,
    jpeg=0.75,
    imitation=1,
    teacher=TEACHER,
)
"""How the released weights were trained."""
