"""What a training run leaves to look at: curves, a confusion matrix, and metrics as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pathlib import Path

    from .metrics import Metrics
    from .trainer import Trainer

LEGIBLE = 30
"""Classes of which a confusion matrix can show names and numbers; of more it shows colours."""

mpl.use("agg")  # files only: there may be no screen


def write(trainer: Trainer, measured: Metrics, held_out: str, out: Path) -> None:
    """Write curves.png, confusion.png, calibration.png and metrics.json to a folder."""
    epochs = by_epoch(trainer)
    metrics = {"held_out": held_out, **asdict(measured), "epochs": epochs}
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    curves(epochs).savefig(out / "curves.png", dpi=100)
    confusion(measured, held_out).savefig(out / "confusion.png", dpi=100)
    calibration(measured, held_out).savefig(out / "calibration.png", dpi=100)


def by_epoch(trainer: Trainer) -> list[dict[str, float]]:
    """Return loss, accuracy (in [0, 1]) and last learning rate of each epoch, in training."""
    log = trainer.log.cpu().numpy().reshape(-1, trainer.steps_per_epoch, 2)
    last = [(i + 1) * trainer.steps_per_epoch - 1 for i in range(len(log))]
    return [
        {"loss": loss, "accuracy": accuracy, "rate": trainer.rate(step)}
        for (loss, accuracy), step in zip(log.mean(1).tolist(), last, strict=True)
    ]


def curves(epochs: list[dict[str, float]]) -> Figure:
    """Draw loss, accuracy and learning rate by epoch."""
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    titles = {"loss": "loss", "accuracy": "accuracy", "rate": "learning rate"}
    for axes, (key, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        axes.plot(range(1, len(epochs) + 1), [epoch[key] for epoch in epochs], marker=".")
        axes.set_title(f"{title}, in training")
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    return figure


def confusion(measured: Metrics, held_out: str) -> Figure:
    """Draw how many images of each label were taken for which."""
    labels, matrix = list(measured.by_label), np.array(measured.confusion)
    figure = Figure(figsize=(7, 6.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(matrix / matrix.sum(1, keepdims=True), cmap="Blues", vmin=0, vmax=1)
    if len(labels) <= LEGIBLE:
        # Labels are anybody's: dollars in them set off no formulas.
        axes.set_xticks(range(len(labels)), labels, rotation=45, parse_math=False)
        axes.set_yticks(range(len(labels)), labels, parse_math=False)
        for (row, column), count in np.ndenumerate(matrix):
            colour = "white" if count > matrix[row].sum() / 2 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    axes.set_title(f"{measured.accuracy:.2%} of {measured.images:,} images right ({held_out})")
    return figure


def calibration(measured: Metrics, held_out: str) -> Figure:
    """Draw how often answers are right that are so and so sure."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="gray", linestyle="--")
    axes.plot(
        [step.confidence for step in measured.reliability],
        [step.accuracy for step in measured.reliability],
        marker="o",
    )
    for step in measured.reliability:
        where = (step.confidence, step.accuracy)
        axes.annotate(f"{step.images:,}", where, (4, -12), textcoords="offset points", fontsize=7)
    axes.set_xlabel("probability of the likeliest label")
    axes.set_ylabel("share that is right")
    axes.set_title(f"calibration error {measured.calibration_error:.2%} ({held_out})")
    axes.grid(alpha=0.3)
    return figure
