"""Train the net and write its weights, their lock and a report: `make train`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from model.weights import WEIGHTS

from . import data, release
from .data import Images
from .recipe import Recipe
from .trainer import NetError, ResumeError, Trainer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .data import Dataset

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_EVERY = 60.0  # seconds
CALIBRATION = 50  # one training image of so many is put aside, to calibrate what was trained
TRIAL_STEPS = 4  # measured before the start, to say how long it will take


def train(recipe: Recipe, dataset: Dataset, out: Path) -> bool:
    """Train, or go on where an earlier call was interrupted; False if interrupted again.

    Raises:
        NetError: `model/net.py` holds another net than the project's.
        ResumeError: the folder holds the checkpoint of another run.
    """
    seconds = _seconds_a_step(recipe, dataset)
    aside = len(dataset.train.targets) // CALIBRATION
    if aside < release.FEWEST:  # too few to be of use
        aside = 0
    images, calibration = data.split(dataset.train, aside, recipe.seed)
    trainer = Trainer(recipe, images, len(dataset.labels), device())
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / CHECKPOINT
    if checkpoint.exists():
        trainer.resume(checkpoint)
        print(f"Going on at step {trainer.step} of {trainer.steps} from {checkpoint}")
    _announce(trainer, dataset, seconds)
    if not run(trainer, checkpoint):
        print(f"Interrupted. The same command goes on from {checkpoint}")
        return False
    measured = release.write(trainer, dataset, calibration, out)
    print(
        f"{out / WEIGHTS}: {measured.accuracy:.2%} of {measured.images:,} images right "
        f"({dataset.held_out_name}); what to look at is beside it"
    )
    return True


def run(trainer: Trainer, checkpoint: Path) -> bool:
    """Train to the end with a progress bar, writing checkpoints; False if interrupted."""
    saved = time.monotonic()
    batch = trainer.recipe.batch
    done, total = trainer.step * batch, trainer.steps * batch
    progress = tqdm(total=total, initial=done, unit=" images", unit_scale=True)
    with progress as bar, _interrupts() as interrupted:
        while trainer.step < trainer.steps:
            epoch = trainer.step // trainer.steps_per_epoch + 1
            bar.set_description(f"epoch {epoch} of {trainer.epochs}", refresh=False)
            loss, right = trainer.advance()
            bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{right:.3f}", refresh=False)
            bar.update(batch)
            if interrupted.is_set() or time.monotonic() - saved > CHECKPOINT_EVERY:
                trainer.save(checkpoint)
                saved = time.monotonic()
            if interrupted.is_set():
                return False
    trainer.save(checkpoint)
    return True


def _announce(trainer: Trainer, dataset: Dataset, seconds: float) -> None:
    """Say what will be done, and how long that takes."""
    left = timedelta(seconds=round(seconds * (trainer.steps - trainer.step)))
    epochs = "1 epoch" if trainer.epochs == 1 else f"{trainer.epochs} epochs"
    print(
        f"{epochs} of {len(trainer.targets):,} images in "
        f"{len(dataset.labels)} classes on {trainer.device}: about {left} (h:mm:ss) at the speed "
        f"of the first {TRIAL_STEPS} batches"
    )


def _seconds_a_step(recipe: Recipe, dataset: Dataset) -> float:
    """Measure some steps of a run that is thrown away; the first one only warms up."""
    few = Images(*(tensor[: recipe.batch * TRIAL_STEPS] for tensor in dataset.train))
    trial = Trainer(recipe, few, len(dataset.labels), device())
    trial.advance()
    start = time.perf_counter()
    for _ in range(TRIAL_STEPS):
        trial.advance()
    return (time.perf_counter() - start) / TRIAL_STEPS


def device() -> str:
    """Return where to train: CUDA where there is a device for it, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def positive(text: str) -> int:
    """Read a whole number above 0."""
    if (value := int(text)) < 1:
        raise ValueError
    return value


@contextmanager
def _interrupts() -> Iterator[Event]:
    """Note Ctrl-C and SIGTERM, so that the step at hand ends and a checkpoint is written."""
    asked = Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: asked.set()) for number in numbers]
    try:
        yield asked
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def main() -> int:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog="make train", description=__doc__)
    parser.add_argument("--epochs", type=positive, help="fewer are quicker; the recipe's if absent")
    parser.add_argument("--data", help="train/<class>/* and val/<class>/*, or CIFAR-10")
    parser.add_argument("--name", default="cifar10", help="name of the model")
    parser.add_argument("--out", type=Path, help="run/train/<name> if absent")
    arguments = parser.parse_args()
    out = arguments.out or Path("run/train") / arguments.name
    try:
        dataset = data.load(arguments.data)
        recipe = Recipe.for_images(len(dataset.train.targets), arguments.epochs)
        return 0 if train(recipe, dataset, out) else 130
    except (NetError, ResumeError, data.DataError) as error:
        print(f"make train: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
