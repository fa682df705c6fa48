"""The recipe: every number that decides what the weights become."""

from __future__ import annotations

import math
from dataclasses import dataclass

FEWEST_STEPS = 2000
"""Steps that a training set is given even if it is small."""


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
class Settling:
    """What comes after training: rounds in which the net gets used to JPEG.

    Each round goes on from the weights as they are. Most images are shown as JPEGs, whose blocks
    lie as in those that users send, and the loss is in part how far the answer is from what the
    net answered before the round to the image itself. What comes of it is averaged, half and
    half, with the weights before the round.
    """

    rounds: int = 2
    epochs: int = 8  # of each round
    peak_rate: float = 0.05
    warmup: float = 0.1
    jpeg: float = 0.7  # the share of images that are shown as JPEGs
    qualities: tuple[int, int] = (60, 90)
    imitation: float = 0.5  # the part of the loss


@dataclass(frozen=True)
class Recipe:
    """How the net is trained. The defaults are those of the released weights.

    Nesterov SGD with a one-cycle learning rate, weight decay on weights but not on norms and
    biases, label smoothing, flips, reflected shifts, JPEG artefacts and cutout, lighter dropout
    than the net's own defaults, and an average of the weights over time; then it settles.
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
    settling: Settling = Settling()
    seed: int = 0

    def averaging_in_round(self, steps: int) -> float:
        """Return what the average keeps of itself at each step of a round of settling of so many.

        In a short round it keeps less: at the end of a round some 5 % of the average, at most, are
        the weights with which the round began, as in those of the released weights.
        """
        return max(0.0, min(self.averaging, 1 - 3 / steps))

    @classmethod
    def for_images(cls, count: int, epochs: int | None = None) -> Recipe:
        """Return the recipe for a training set of so many images; for CIFAR-10 the default one.

        A small set gets small batches, rates to match, and more epochs where none are asked for;
        a short run averages over fewer steps, so that its beginning is forgotten, and does not
        settle.
        """
        batch = min(cls.batch, count, max(16, count // 20))
        steps = count // batch
        whole = max(cls.epochs, math.ceil(FEWEST_STEPS / steps))
        epochs = epochs or whole
        slower = batch / cls.batch
        rounds = Settling.rounds if epochs >= whole else 0
        return cls(
            epochs=epochs,
            batch=batch,
            peak_rate=cls.peak_rate * slower,
            averaging=max(0.0, min(cls.averaging, 1 - 10 / (epochs * steps))),
            settling=Settling(rounds=rounds, peak_rate=Settling.peak_rate * slower),
        )
