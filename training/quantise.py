"""Weights that were trained elsewhere, as 8-bit integers too: `make quantise`.

What `make train` does at its end, without the training.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from classifier.archiving import archive, bundle
from classifier.errors import ArchiveError
from model import LabelsError, WeightsError
from model.classifier import read_labels
from model.weights import LOCK, WEIGHTS, parse

from . import data, release

if TYPE_CHECKING:
    from .data import Dataset


def quantise(weights: Path, dataset: Dataset, out: Path) -> bool:
    """Write weights with their lock, and with the net in 8-bit integers if that costs little.

    Args:
        weights: a safetensors file, or a state dict saved by torch. Its outputs are of the labels
            beside it (index_to_name.json), or else of the data set's.
        dataset: its training images calibrate the integers, its held-out images measure.
        out: the folder to write to.

    Returns:
        Whether the integers were written: not if they would cost too much.

    Raises:
        ArchiveError: the weights can't be read.
        LabelsError: the labels can't be read.
        DataError: the labels are not the classes of the data set.
        WeightsError: the weights don't fit the net.
    """
    state = parse(archive.read_weights(weights)[WEIGHTS], weights.name)
    labels = weights.with_name(release.LABELS)
    if labels.is_file():
        dataset = dataset.labelled(read_labels(labels), str(labels))
    out.mkdir(parents=True, exist_ok=True)
    measured = release.write_weights(state, dataset, {}, out)
    print(f"{measured.accuracy:.2%} of {measured.images:,} images right ({dataset.held_out_name})")
    integers = json.loads((out / LOCK).read_text()).get("int8")
    if integers is None:
        return False
    print(
        f"In 8-bit integers {integers['accuracy']:.2%}, and {integers['agreement']:.2%} labelled "
        "as in floats"
    )
    return True


def main() -> int:
    """Read the command line and quantise."""
    parser = argparse.ArgumentParser(prog="make quantise", description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="safetensors, or .pth")
    parser.add_argument("--data", help="train/<class>/* and val/<class>/*, or CIFAR-10")
    parser.add_argument("--out", type=Path, help="run/quantised/<name of the file> if absent")
    arguments = parser.parse_args()
    out = arguments.out or Path("run/quantised") / arguments.weights.stem
    try:
        done = quantise(arguments.weights, data.load(arguments.data), out)
    except (ArchiveError, LabelsError, WeightsError, data.DataError) as error:
        print(f"make quantise: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        told = bundle.failure(error, Path.cwd())
        if not told.startswith("model/"):  # no fault of a net of one's own
            raise
        print(f"make quantise: {told}", file=sys.stderr)
        return 1
    if done:
        print(f"Now: make archive NAME=… VERSION=… WEIGHTS={out / WEIGHTS}")
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
