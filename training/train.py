"""Train the net and write its weights, their lock and a report: `make train`."""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from model.weights import WEIGHTS

from . import data, release
from .data import Images
from .graph import WARM_UP
from .recipe import Recipe
from .teacher import new_teacher
from .trainer import NetError, ResumeError, Trainer, new_net

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .data import Dataset

CHECKPOINTS = ("teacher.pt", "net.pt")
"""Of a teacher, and of what is released."""
CHECKPOINT_EVERY = 60.0  # seconds
CALIBRATION = 50  # one training image of so many is put aside, to calibrate what was trained
TRIAL_STEPS = 4  # measured before the start, to say how long it will take


def train(recipe: Recipe, dataset: Dataset, out: Path) -> bool:
    """Train, or go on where an earlier call was interrupted; False if interrupted again.

    Raises:
        NetError: `model/net.py` holds another net than the project's.
        ResumeError: the folder holds the checkpoint of another run.
    """
    aside = len(dataset.train.targets) // CALIBRATION
    if aside < release.FEWEST:  # too few to be of use
        aside = 0
    images, calibration = data.split(dataset.train, aside, recipe.seed)
    print(f"Measuring the first {TRIAL_STEPS} batches, to say how long it will take ...")
    speeds = _seconds_a_step(recipe, images, len(dataset.labels))
    gc.collect()  # they hold a GPU's memory
    trainers = course(recipe, images, len(dataset.labels))
    out.mkdir(parents=True, exist_ok=True)
    checkpoints = [out / name for name in CHECKPOINTS[-len(trainers) :]]
    if checkpoints[-1].exists() and not checkpoints[0].exists():
        raise ResumeError(
            f"{checkpoints[-1]} learnt from a teacher that is gone, {checkpoints[0]}: "
            "delete it, or name another OUT"
        )
    for trainer, checkpoint in zip(trainers, checkpoints, strict=True):
        if checkpoint.exists():
            trainer.resume(checkpoint)
            print(f"Going on at step {trainer.step} of {trainer.steps} from {checkpoint}")
    _announce(trainers, speeds)
    for trainer, checkpoint in zip(trainers, checkpoints, strict=True):
        if not run(trainer, checkpoint):
            print(f"Interrupted. The same command goes on from {checkpoint}")
            return False
    measured = release.write(trainers[-1], dataset, calibration, out)
    print(
        f"{out / WEIGHTS}: {measured.accuracy:.2%} of {measured.images:,} images right "
        f"({dataset.held_out_name}); what to look at is beside it"
    )
    return True


def course(recipe: Recipe, images: Images, classes: int) -> list[Trainer]:
    """Return the runs of a recipe: of its teacher, if it has one, and then its own.

    Raises:
        NetError: `model/net.py` holds another net than the project's.
    """
    net = new_net(recipe, classes)
    if recipe.teacher is None:
        return [Trainer(recipe, images, classes, net, device())]
    new = new_teacher(recipe.teacher, classes)
    first = Trainer(recipe.teacher, images, classes, new, device())
    return [first, Trainer(recipe, images, classes, net, device(), first.average)]


def run(trainer: Trainer, checkpoint: Path) -> bool:
    """Train to the end with a progress bar, writing checkpoints; False if interrupted."""
    saved = time.monotonic()
    batch, epochs = trainer.recipe.batch, trainer.recipe.epochs
    done, total = trainer.step * batch, trainer.steps * batch
    progress = tqdm(total=total, initial=done, unit=" images", unit_scale=True)
    with progress as bar, _interrupts() as interrupted:
        while trainer.step < trainer.steps:
            epoch = trainer.step // trainer.steps_per_epoch + 1
            bar.set_description(f"{checkpoint.stem}, epoch {epoch} of {epochs}", refresh=False)
            trainer.advance()
            if bar.update(batch):  # it was drawn: to read the log each time makes a GPU wait
                loss, right = trainer.log[trainer.step - 1].tolist()
                bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{right:.3f}", refresh=False)
            if interrupted.is_set() or time.monotonic() - saved > CHECKPOINT_EVERY:
                trainer.save(checkpoint)
                saved = time.monotonic()
            if interrupted.is_set():
                return False
    trainer.save(checkpoint)
    return True


def _announce(trainers: Sequence[Trainer], speeds: Sequence[float]) -> None:
    """Say what will be done, and how long that takes."""
    steps = [trainer.steps - trainer.step for trainer in trainers]
    seconds = sum(s * count for s, count in zip(speeds, steps, strict=True))
    epochs = " + ".join(str(trainer.recipe.epochs) for trainer in trainers)
    what = "epoch" if epochs == "1" else "epochs"
    if len(trainers) > 1:
        what += " (of a teacher, and of the net that learns from it)"
    last = trainers[-1]
    print(
        f"{epochs} {what} of {len(last.targets):,} images in {last.classes} classes on "
        f"{last.device}: about {timedelta(seconds=round(seconds))} (h:mm:ss) at the speed of the "
        f"first {TRIAL_STEPS} batches"
    )
    if len(trainers) > 1:
        print(f"EPOCHS={Recipe.epochs} does without a teacher, and takes a small part of that time")


def _seconds_a_step(recipe: Recipe, images: Images, classes: int) -> list[float]:
    """Measure some steps of runs that are thrown away; the first of each only warm up."""
    few = Images(*(tensor[: recipe.batch * TRIAL_STEPS] for tensor in images))
    epochs = TRIAL_STEPS + WARM_UP + 1  # an epoch may have but one step
    enough = replace(recipe, epochs=epochs)
    if recipe.teacher is not None:
        enough = replace(enough, teacher=replace(recipe.teacher, epochs=epochs))
    speeds = []
    for trial in course(enough, few, classes):
        for _ in range(trial.slow):
            trial.advance()
        trial.log.cpu()  # what a GPU was asked for is done
        start = time.perf_counter()
        for _ in range(TRIAL_STEPS):
            trial.advance()
        trial.log.cpu()
        speeds.append((time.perf_counter() - start) / TRIAL_STEPS)
    return speeds


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
    parser.add_argument(
        "--epochs", type=positive, help="so many, without a teacher; the recipe's if absent"
    )
    parser.add_argument("--data", help="train/<class>/* and val/<class>/*, or CIFAR-10")
    parser.add_argument("--name", default="cifar10", help="name of the model")
    parser.add_argument("--out", type=Path, help="run/train/<name> if absent")
    arguments = parser.parse_args()
    out = arguments.out or Path("run/train") / arguments.name
    try:
        dataset = data.load(arguments.data)
        recipe = Recipe.for_images(len(dataset.train.targets), arguments.epochs)
        return 0 if train(recipe, dataset, out) else 130
    except KeyboardInterrupt:  # before the first step
        return 130
    except (NetError, ResumeError, data.DataError) as error:
        print(f"make train: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
