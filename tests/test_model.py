"""The net, its weights and their lock, and the reference, without any server."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import model
from model import WeightsError
from model.classifier import LabelsError, read_labels
from model.net import Net

from . import reference
from .images import crops, encode

if TYPE_CHECKING:
    from training.data import Images

SHAPES = {
    "conv1": (64, 3, 3, 3),
    "conv2": (64, 64, 3, 3),
    "conv3": (128, 64, 3, 3),
    "conv4": (128, 128, 3, 3),
    "conv5": (256, 128, 3, 3),
    "conv6": (256, 256, 3, 3),
    "fc1": (256, 4096),
    "fc2": (10, 256),
}
CHANNELS = (64, 64, 128, 128, 256, 256, 256)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of what `model.load` reads."""
    for name in ("weights.safetensors", "weights.lock", "index_to_name.json"):
        shutil.copy(Path("model") / name, tmp_path)
    return tmp_path


def test_the_net_has_the_parameters_that_weights_trained_elsewhere_have() -> None:
    expected = {f"{name}.weight": shape for name, shape in SHAPES.items()}
    expected |= {f"{name}.bias": shape[:1] for name, shape in SHAPES.items()}
    for i, channels in enumerate(CHANNELS, start=1):
        for part in ("weight", "bias", "running_mean", "running_var"):
            expected[f"norm{i}.{part}"] = (channels,)
        expected[f"norm{i}.num_batches_tracked"] = ()
    assert {name: tuple(t.shape) for name, t in Net().state_dict().items()} == expected


def test_the_net_drops_out_at_the_rates_of_the_design() -> None:
    net = Net()
    assert [getattr(net, f"dropout{i}").p for i in (1, 2, 3, 4)] == [0.2, 0.3, 0.4, 0.5]
    assert isinstance(net.dropout1, torch.nn.Dropout2d)
    assert type(net.dropout4) is torch.nn.Dropout


def test_labels_are_in_order() -> None:
    assert model.load("model").labels == reference.LABELS


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["crane", "dog", "crane"], "'crane' more than once"),
        (["\ud800", "b"], "no text"),
        (["crane", 1], "must hold a name for each index"),
    ],
)
def test_refuses_labels_that_no_answer_can_hold(
    tmp_path: Path, names: list[str | int], message: str
) -> None:
    path = tmp_path / "index_to_name.json"
    path.write_text(json.dumps({str(i): name for i, name in enumerate(names)}))
    with pytest.raises(LabelsError, match=message):
        read_labels(path)


def test_labels_that_are_equally_likely_come_in_their_order() -> None:
    labels = [str(number) for number in range(100)]
    classifier = model.Classifier(mock.Mock(), labels, mock.Mock())
    row = np.where(np.arange(100) % 3, 0.0, 0.03).astype(np.float32)
    assert list(classifier.top(row, 8)) == labels[:24:3]


def assert_agrees_on(images: list[bytes]) -> None:
    classifier = model.load("model", "torch")
    rows = classifier.probabilities(np.stack([model.decode(image) for image in images]))
    for row, expected in zip(rows, reference.probabilities(images), strict=True):
        difference = [
            abs(p - expected[label]) for p, label in zip(row, reference.LABELS, strict=True)
        ]
        assert max(difference) <= reference.TOLERANCE
        reference.assert_agrees(classifier.top(row), expected)


def test_agrees_with_the_reference_on_crops_of_a_photo() -> None:
    assert_agrees_on(list(crops(200)))


def test_agrees_with_the_reference_on_test_images(test_images: Images) -> None:
    assert_agrees_on([encode(Image.fromarray(p.numpy())) for p in test_images.pixels[:500]])


def test_classifies_test_images_as_well_as_the_lock_says(test_images: Images) -> None:
    count = 1000
    pixels, targets = test_images.pixels[:count].numpy(), test_images.targets[:count].numpy()
    right = model.load("model", "torch").probabilities(pixels).argmax(1) == targets
    says = json.loads(Path("model/weights.lock").read_text())["accuracy"]["cifar10-test"]
    assert says >= 0.85
    assert abs(right.mean() - says) < 4 * (says * (1 - says) / count) ** 0.5


def test_refuses_weights_that_are_not_those_of_the_lock(folder: Path) -> None:
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"sha256 \w+, but weights.lock says"):
        model.load(folder)


def test_the_net_stands_alone_as_a_model_file_of_torchserve_does() -> None:
    runpy.run_path("model/net.py")  # as no part of a package


def test_refuses_weights_that_do_not_fit_the_net(folder: Path) -> None:
    state = Net(classes=7).state_dict()
    save_file(state, folder / "weights.safetensors")
    lock = model.weights.digest((folder / "weights.safetensors").read_bytes())
    (folder / "weights.lock").write_text(json.dumps(lock))
    with pytest.raises(WeightsError, match=r"don't fit Net\(10\).*fc2") as caught:
        model.load(folder)
    assert "\n" not in str(caught.value)


def test_names_the_file_that_is_missing(folder: Path) -> None:
    (folder / "weights.lock").unlink()
    with pytest.raises(WeightsError, match=r"weights\.lock is missing"):
        model.load(folder)
