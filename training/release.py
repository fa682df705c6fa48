"""What a training run leaves: calibrated weights, labels, a report and, last, the lock."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
import torchvision
from safetensors.torch import save

from model import Classifier
from model.weights import LOCK, WEIGHTS, digest, fit

from . import report
from .evaluate import probabilities
from .metrics import best_temperature, measure
from .trainer import has_bfloat16

if TYPE_CHECKING:
    from pathlib import Path

    from .data import Dataset, Images
    from .metrics import Metrics
    from .trainer import Trainer

LABELS = "index_to_name.json"
FEWEST = 500
"""A temperature is fitted to so many images at least; to fewer it would fit by chance."""


def write(trainer: Trainer, dataset: Dataset, calibration: Images, out: Path) -> Metrics:
    """Calibrate, measure and write what was trained; return what was measured.

    Args:
        trainer: at the end of its run.
        dataset: its held-out images measure, its labels travel with the weights.
        calibration: images that were not trained on, to fit the temperature to.
        out: the folder to write to.
    """
    temperature = fit_temperature(trainer, dataset.labels, calibration)
    weights = trainer.weights(temperature)
    classifier = Classifier(fit(weights, len(dataset.labels)), dataset.labels)
    found = probabilities(classifier, dataset.held_out.pixels.numpy())
    measured = measure(found, dataset.held_out.targets.numpy(), dataset.labels)
    report.write(trainer, measured, dataset.held_out_name, out)
    names = {str(index): label for index, label in enumerate(dataset.labels)}
    (out / LABELS).write_text(json.dumps(names, indent=2) + "\n")
    data = save(weights)
    (out / WEIGHTS).write_bytes(data)
    lock = {
        **digest(data),
        "accuracy": {dataset.held_out_name: measured.accuracy},
        "temperature": temperature,
        "recipe": asdict(trainer.recipe),
        "trained_with": {
            "torch": torch.__version__.partition("+")[0],
            "torchvision": torchvision.__version__.partition("+")[0],
            "device": trainer.device,
            "precision": "bfloat16" if has_bfloat16(trainer.device) else "float32",
            "threads": torch.get_num_threads(),
        },
    }
    (out / LOCK).write_text(json.dumps(lock, indent=2) + "\n")
    return measured


def fit_temperature(trainer: Trainer, labels: tuple[str, ...], calibration: Images) -> float:
    """Return what to divide the logits by so that probabilities mean something; 1 if unknown."""
    if len(calibration.targets) < FEWEST:
        return 1.0
    classifier = Classifier(fit(trainer.weights(), len(labels)), labels)
    found = probabilities(classifier, calibration.pixels.numpy())
    return best_temperature(found, calibration.targets.numpy())
