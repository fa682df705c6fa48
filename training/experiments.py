"""What each part of the recipe gives, on a split of CIFAR-10's training images.

5,000 of the 50,000 training images are held out and measured on. The test images have no part in
it: what is chosen here is not chosen by them. `make experiments` writes a table and, for each
recipe, a JSON file; an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.optim.swa_utils import update_bn

from model.engine_torch import TorchEngine
from model.image import normalise
from model.net import DROPOUT

from . import cifar10, metrics
from .arrivals import ARRIVALS, arrive
from .data import DataError, Images, split
from .evaluate import BATCH, accuracy, probabilities
from .recipe import RELEASED, Recipe
from .train import course, device, positive, run
from .trainer import NetError, ResumeError

if TYPE_CHECKING:
    from model.net import Net

HELD_OUT = 5000
SEED = 0  # of the split
SHORT = 8  # epochs of the experiments before `longer`
TEACHER = "taught-by.pt"
"""The checkpoint of the teacher from whom several recipes learn; no recipe is called so."""


def ladder(epochs: int = SHORT) -> dict[str, Recipe]:
    """Return recipes by name; each adds to the one before; the last is the released one.

    Args:
        epochs: of those before `longer`, which has as many as the released recipe.
    """
    plain = Recipe(
        epochs=epochs,
        smoothing=0,
        dropout=DROPOUT,
        averaging=Recipe.for_images(45_000, epochs).averaging,  # has no part in the training
        jpeg=0,
        cutout=0,
    )
    light = replace(plain, dropout=Recipe.dropout)
    smooth = replace(light, smoothing=Recipe.smoothing)
    jpeg = replace(smooth, jpeg=Recipe.jpeg)
    cutout = replace(jpeg, cutout=Recipe.cutout)
    longer = replace(cutout, epochs=RELEASED.epochs, averaging=RELEASED.averaging)
    return {
        "plain": plain,
        "light-dropout": light,
        "label-smoothing": smooth,
        "jpeg": jpeg,
        "cutout": cutout,
        "longer": longer,
        "teacher": replace(RELEASED, mixing=0, cutout=longer.cutout),
        "released": RELEASED,
    }


def experiment(recipe: Recipe, train: Images, held_out: Images, out: Path) -> dict[str, Any]:
    """Train by a recipe, or go on, and return what was found.

    Args:
        recipe: how to train.
        train: images to train on.
        held_out: images to measure with.
        out: keeps the checkpoint; that of a teacher is kept beside it, for all that learn from it.

    Raises:
        KeyboardInterrupt: it was interrupted.
    """
    trainers = course(recipe, train, len(cifar10.LABELS))
    checkpoints = [out.with_name(TEACHER), out][-len(trainers) :]
    for trainer, checkpoint in zip(trainers, checkpoints, strict=True):
        start = time.monotonic()  # of the last: a teacher is trained once for all
        if checkpoint.exists():
            trainer.resume(checkpoint)
        if not run(trainer, checkpoint):
            raise KeyboardInterrupt
    seconds = time.monotonic() - start
    last, average = cast("Net", trainer.net), cast("Net", trainer.average)
    averaged = _engine(average)
    found = probabilities(averaged, held_out.pixels.numpy())
    targets = held_out.targets.numpy()
    right = found.argmax(1) == targets
    temperature = metrics.best_temperature(found, targets)
    calibrated = metrics.at_temperature(found, temperature)
    return {
        "recipe": asdict(recipe),
        "seconds": round(seconds),
        "accuracy": {
            "last weights": accuracy(_engine(last), held_out),
            "averaged weights": float(right.mean()),
            "averaged weights, statistics anew": accuracy(
                _engine(_with_statistics_anew(average, train)), held_out
            ),
            **{how: accuracy(averaged, _arrived(held_out, how)) for how in ARRIVALS},
        },
        "calibration_error": metrics.calibration_error(found.max(1), right),
        "temperature": temperature,
        "calibration_error_at_temperature": metrics.calibration_error(calibrated.max(1), right),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return results as a Markdown table."""
    columns = list(next(iter(results.values()))["accuracy"])
    rows = [["recipe", "epochs", *columns], ["---"] * (len(columns) + 2)]
    for name, result in results.items():
        accuracies = [f"{result['accuracy'][column]:.2%}" for column in columns]
        rows.append([name, str(result["recipe"]["epochs"]), *accuracies])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _engine(net: Net) -> TorchEngine:
    """Return what runs a copy of the net, which is not disturbed."""
    return TorchEngine(copy.deepcopy(net).eval(), device())


def _arrived(images: Images, how: str) -> Images:
    """Return the images as they arrive in one of the ways of ARRIVALS."""
    return images._replace(pixels=torch.from_numpy(arrive(images.pixels.numpy(), how)))


def _with_statistics_anew(net: Net, images: Images) -> Net:
    """Return a copy of the net whose batch norms hold the statistics of the images."""
    fresh = copy.deepcopy(net)
    batches = (normalise(pixels.to(device())) for pixels in images.pixels.split(BATCH))
    update_bn(batches, fresh)
    return fresh


def main() -> int:
    """Run the experiments that are not yet done, and print the table."""
    parser = argparse.ArgumentParser(prog="make experiments", description=main.__doc__)
    parser.add_argument("--epochs", type=positive, default=SHORT, help="of those before `longer`")
    parser.add_argument("--data", help="CIFAR-10")
    parser.add_argument("--out", type=Path, default=Path("run/experiments"))
    arguments = parser.parse_args()
    try:
        train, held_out = split(cifar10.load(train=True, root=arguments.data), HELD_OUT, SEED)
    except DataError as error:
        print(f"make experiments: {error}", file=sys.stderr)
        return 1
    results = {}
    try:
        for name, recipe in ladder(arguments.epochs).items():
            results[name] = _found(name, recipe, train, held_out, arguments.out)
    except KeyboardInterrupt:
        print(f"Interrupted. The same command goes on from {arguments.out}")
    except (NetError, ResumeError) as error:
        print(f"make experiments: {error}", file=sys.stderr)
        return 1
    if results:
        print(table(results))
    return 0 if len(results) == len(ladder()) else 130


def _found(name: str, recipe: Recipe, train: Images, held_out: Images, out: Path) -> dict[str, Any]:
    """Return what an experiment found: of its file in `out` if it was done before.

    Raises:
        ResumeError: it was done, wholly or in part, by another recipe.
    """
    path = out / f"{name}.json"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        print(f"{name}: {recipe}")
        found = experiment(recipe, train, held_out, path.with_suffix(".pt"))
        path.write_text(json.dumps(found, indent=2) + "\n")
    stored: dict[str, Any] = json.loads(path.read_text())
    if stored["recipe"] != json.loads(json.dumps(asdict(recipe))):  # JSON has no tuples
        raise ResumeError(f"{path} is of another recipe: delete it, or name another OUT")
    return stored


if __name__ == "__main__":
    sys.exit(main())
