"""The classifier: net, weights and labels as one object, without any server."""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from . import engine as engines
from . import weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from .engine import Engine
    from .explanation import Explainer


class LabelsError(ValueError):
    """The labels can't be read; the message says why."""


class ExplanationError(RuntimeError):
    """There can be no explanations here; the message says why."""


TOP = 5
"""How many labels an answer holds at most."""


class Classifier:
    """An engine that runs the net, and the labels.

    Args:
        engine: what runs the net.
        labels: one for each output of the net, in order.
        explainer: makes what explains answers; it is called when that is first asked for.
    """

    def __init__(
        self, engine: Engine, labels: Sequence[str], explainer: Callable[[], Explainer]
    ) -> None:
        self.engine = engine
        self.labels = tuple(labels)
        self._explainer = functools.cache(explainer)

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify a batch.

        Args:
            pixels: uint8 N×32×32×3 RGB, as `image.decode` makes them.

        Returns:
            float32 N×classes in [0, 1]; each row adds up to 1.
        """
        return self.engine.probabilities(pixels)

    def top(self, probabilities: NDArray[np.float32], count: int = TOP) -> dict[str, float]:
        """Return the likeliest labels of one row of probabilities, likeliest first."""
        order = (-probabilities).argsort(kind="stable")[:count]
        likeliest = zip(order.tolist(), probabilities[order].tolist(), strict=True)
        return {self.labels[index]: probability for index, probability in likeliest}

    def explain(self, pixels: NDArray[np.uint8], label: int) -> NDArray[np.float32]:
        """Tell how much each pixel of an image speaks for a label (see `Explainer.map`).

        The float net is explained, whichever engine answers; it is read from the folder that the
        classifier was loaded from when this is first asked.

        Args:
            pixels: uint8 32×32×3 RGB.
            label: its index in `labels`.

        Returns:
            float32 32×32 in [-1, 1].

        Raises:
            ExplanationError: what explains is not installed.
            WeightsError: the weights have gone, or are others than those of the lock.
        """
        return self._explainer().map(pixels, label)


def load(
    folder: str | Path,
    engine: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    alone: int | None = None,
) -> Classifier:
    """Load the classifier that a folder holds: `model/`, or an unpacked archive.

    Args:
        folder: holds weights, their lock and index_to_name.json.
        engine: `openvino`, `torch` or `auto` (see `engine.load`).
        device: where the net shall run, as torch names it: cpu, cuda, cuda:0.
        threads: on a CPU; the engine's own choice if None.
        alone: threads for an image that is a batch by itself (see `engine.load`).

    Raises:
        WeightsError: the weights don't fit the net, the labels or the lock.
        LabelsError: the labels can't be read.
        EngineError: there is no such engine, or it can't run here.
    """
    folder = Path(folder)
    labels = read_labels(folder / "index_to_name.json")

    def explainer() -> Explainer:
        try:
            from .explanation import Explainer  # here, for it imports torch
        except ModuleNotFoundError as error:
            raise ExplanationError(
                f"explanations need the package {error.name} where the model is served"
            ) from None
        state = weights.read(folder)
        return Explainer(weights.fit(state, len(labels)), threads)

    runs = engines.load(folder, len(labels), engine, device, threads, alone)
    return Classifier(runs, labels, explainer)


def read_labels(path: Path) -> list[str]:
    """Read labels, in the order of the net's outputs, from TorchServe's index_to_name.json.

    Raises:
        LabelsError: it is no JSON object of another name for each of "0", "1", …
    """
    try:
        names = json.loads(path.read_text())
        labels = [names[str(index)] for index in range(len(names))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabelsError(
            f'{path.name} can\'t be read as labels ({error!r}): write {{"0": "cat", "1": "dog"}}, '
            "with a name for each output of the net"
        ) from None
    if not labels or not all(isinstance(label, str) for label in labels):
        raise LabelsError(f"{path.name} must hold a name for each index, and nothing else")
    twice = sorted(label for label, count in Counter(labels).items() if count > 1)
    if twice:  # answers name probabilities by their labels: one would hide the other
        raise LabelsError(f"{path.name} has {twice[0]!r} more than once: tell the classes apart")
    try:
        "".join(labels).encode()
    except UnicodeEncodeError as error:
        raise LabelsError(f"{path.name} holds what is no text: {error}") from None
    return labels
