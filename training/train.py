"""Train the net on CIFAR-10 and write its weights and their lock: `make train`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import torch
import torchvision
from safetensors.torch import save
from tqdm import tqdm

import model
from model.classifier import read_labels
from model.weights import LOCK, WEIGHTS, digest

from .data import DataError, load
from .evaluate import accuracy
from .recipe import Recipe
from .trainer import ResumeError, Trainer

if TYPE_CHECKING:
    from collections.abc import Iterator

LABELS = Path("model/index_to_name.json")
CHECKPOINT = "checkpoint.pt"
CHECKPOINT_EVERY = 60.0  # seconds


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


def run(trainer: Trainer, checkpoint: Path) -> bool:
    """Train to the end with a progress bar, writing checkpoints; False if interrupted."""
    saved = time.monotonic()
    batch = trainer.recipe.batch
    done, total = trainer.step * batch, trainer.steps * batch
    progress = tqdm(total=total, initial=done, unit=" images", unit_scale=True)
    with progress as bar, _interrupts() as interrupted:
        while trainer.step < trainer.steps:
            epoch = trainer.step // trainer.steps_per_epoch + 1
            bar.set_description(f"epoch {epoch} of {trainer.recipe.epochs}", refresh=False)
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


def write(trainer: Trainer, out: Path, test_accuracy: float) -> None:
    """Write the weights and, last, their lock."""
    data = save(trainer.weights())
    (out / WEIGHTS).write_bytes(data)
    lock = {
        **digest(data),
        "accuracy": {"cifar10-test": test_accuracy},
        "recipe": asdict(trainer.recipe),
        "trained_with": {
            "torch": torch.__version__.partition("+")[0],
            "torchvision": torchvision.__version__.partition("+")[0],
            "device": trainer.device,
            "threads": torch.get_num_threads(),
        },
    }
    (out / LOCK).write_text(json.dumps(lock, indent=2) + "\n")


def train(recipe: Recipe, data: str | None, out: Path) -> int:
    """Train, or go on where an earlier call was interrupted; return the exit status."""
    labels = read_labels(LABELS)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trainer = Trainer(recipe, load(train=True, root=data), len(labels), device)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / CHECKPOINT
    if checkpoint.exists():
        trainer.resume(checkpoint)
        print(f"going on at step {trainer.step} of {trainer.steps} from {checkpoint}")
    if not run(trainer, checkpoint):
        print(f"interrupted; the same command goes on from {checkpoint}")
        return 130
    classifier = model.Classifier(model.weights.fit(trainer.weights(), len(labels)), labels)
    measured = accuracy(classifier, load(train=False, root=data))
    write(trainer, out, measured)
    print(f"{out / WEIGHTS}: {measured:.2%} of the 10,000 test images")
    return 0


def main() -> int:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog="make train", description=__doc__)
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--data", help="folder that holds cifar-10-batches-py")
    parser.add_argument("--out", type=Path, default=Path("run/train"))
    arguments = parser.parse_args()
    try:
        return train(Recipe(epochs=arguments.epochs), arguments.data, arguments.out)
    except (ResumeError, DataError) as error:
        print(f"make train: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
