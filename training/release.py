"""What a training run leaves: weights, the same in 8-bit integers, labels, a report and a lock."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
import torchvision
from safetensors.torch import save

from model.engine_openvino import OpenVinoEngine
from model.engine_torch import TorchEngine
from model.weights import INT8, LOCK, WEIGHTS, digest, fit

from . import int8, report
from .evaluate import probabilities
from .metrics import best_temperature, measure
from .trainer import has_bfloat16

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from model.net import Net

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
    temperature = fit_temperature(trainer, len(dataset.labels), calibration)
    told = {
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
    measured = write_weights(trainer.weights(temperature), dataset, told, out)
    report.write(trainer, measured, dataset.held_out_name, out)  # last: weights matter more
    return measured


def write_weights(
    weights: dict[str, torch.Tensor], dataset: Dataset, told: dict[str, Any], out: Path
) -> Metrics:
    """Measure weights, and write them, labels, the net in 8-bit integers and the lock.

    Args:
        weights: a state dict of the net, on the CPU.
        dataset: as in `write`; its training images calibrate the integers.
        told: what the lock shall say besides.
        out: the folder to write to.

    Raises:
        WeightsError: they don't fit a net with as many outputs as there are labels.
    """
    net = fit(weights, len(dataset.labels))
    found = probabilities(TorchEngine(net), dataset.held_out.pixels.numpy())
    measured = measure(found, dataset.held_out.targets.numpy(), dataset.labels)
    names = {str(index): label for index, label in enumerate(dataset.labels)}
    (out / LABELS).write_text(json.dumps(names, indent=2) + "\n")
    data = save(weights)
    (out / WEIGHTS).write_bytes(data)
    lock = {
        **digest(data),
        "accuracy": {dataset.held_out_name: measured.accuracy},
        **write_int8(net, found, dataset, out),
        **told,
    }
    (out / LOCK).write_text(json.dumps(lock, indent=2) + "\n")
    return measured


def fit_temperature(trainer: Trainer, classes: int, calibration: Images) -> float:
    """Return what to divide the logits by so that probabilities mean something; 1 if unknown."""
    if len(calibration.targets) < FEWEST:
        return 1.0
    found = probabilities(TorchEngine(fit(trainer.weights(), classes)), calibration.pixels.numpy())
    return best_temperature(found, calibration.targets.numpy())


def write_int8(
    net: Net, expected: NDArray[np.float32], dataset: Dataset, out: Path
) -> dict[str, Any]:
    """Write the net in 8-bit integers, unless they would cost too much.

    Args:
        net: in evaluation mode, on the CPU.
        expected: what it answers to the held-out images, float32 N×classes.
        dataset: what calibrates and what measures.
        out: the folder to write to.

    Returns:
        What the lock says of it: digests, accuracy, and the share of images labelled alike.
    """
    labels, targets = expected.argmax(1), dataset.held_out.targets.numpy()
    # With all channels if with fewer they would cost too much.
    for slim in (True, False) if hasattr(net, "CHANNELS") else (False,):
        graph, constants = int8.quantise(net, dataset.train, slim=slim)
        files = dict(zip(INT8, (graph, constants), strict=True))
        engine = OpenVinoEngine(graph, constants)
        found = probabilities(engine, dataset.held_out.pixels.numpy()).argmax(1)
        accuracy, agreement = float((found == targets).mean()), float((found == labels).mean())
        lost = int((labels == targets).sum() - (found == targets).sum())
        if not int8.costs_too_much(lost, int((found != labels).sum()), len(targets)):
            for name, data in files.items():
                (out / name).write_bytes(data)
            digests = {name: digest(data) for name, data in files.items()}
            return {"int8": {**digests, "accuracy": accuracy, "agreement": agreement}}
    print(
        f"In 8-bit integers only {accuracy:.2%} are right and {agreement:.2%} labelled alike: "
        "that is too little, so the net is released in floats alone"
    )
    for name in INT8:
        (out / name).unlink(missing_ok=True)
    return {}
