"""8-bit integers for weights that were trained elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import model
from classifier.archiving import archive, bundle
from model.weights import LOCK, WEIGHTS, read
from training import cifar10, data, int8, quantise
from training.data import DataError, Dataset, Images


@pytest.fixture(scope="module")
def dataset(test_images: Images) -> Dataset:
    """Pictures whose classes are what the released net makes of them."""
    pixels = test_images.pixels[:300]
    targets = model.load("model", "torch").probabilities(pixels.numpy()).argmax(1)
    images = Images.of(pixels.numpy(), targets.tolist())
    return Dataset(cifar10.LABELS, images, images, "some")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The released net with its outputs the other way round, as a .pth file, and their labels."""
    state = read(Path("model"))
    for name in ("fc2.weight", "fc2.bias"):
        state[name] = state[name].flip(0)
    torch.save(state, tmp_path / "net.pth")
    labels = dict(enumerate(reversed(cifar10.LABELS)))
    (tmp_path / "index_to_name.json").write_text(json.dumps(labels))
    return tmp_path / "net.pth"


def test_what_is_written_can_be_archived(
    dataset: Dataset, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = weights.parent / "out"
    assert quantise.quantise(weights, dataset, out)
    told = capsys.readouterr().out
    assert "100.00% of 300 images right (some)" in told, "by the labels beside the weights"
    assert "labelled as in floats" in told
    built = archive.build("mine", "1.0", out / WEIGHTS, weights.parent)
    classifier = bundle.load(built)
    assert classifier.labels == cifar10.LABELS[::-1]
    predicted = classifier.probabilities(dataset.held_out.pixels.numpy()).argmax(1)
    assert ((9 - predicted) == dataset.held_out.targets.numpy()).mean() >= 0.99


def test_labels_that_are_not_those_of_the_data_are_refused(dataset: Dataset, weights: Path) -> None:
    labels = {n: label.replace("cat", "lynx") for n, label in enumerate(cifar10.LABELS)}
    weights.with_name("index_to_name.json").write_text(json.dumps(labels))
    with pytest.raises(DataError, match=r"plane, car, bird, cat.* has plane, car, bird, lynx"):
        quantise.quantise(weights, dataset, weights.parent / "out")
    assert not (weights.parent / "out").exists()


def test_integers_that_would_cost_too_much_are_not_written(
    dataset: Dataset,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(int8, "costs_too_much", lambda *_: True)
    monkeypatch.setattr(data, "load", lambda _: dataset)
    out = weights.parent / "out"
    monkeypatch.setattr("sys.argv", ["quantise", f"--weights={weights}", f"--out={out}"])
    assert quantise.main() == 1
    assert "released in floats alone" in capsys.readouterr().out
    assert "int8" not in json.loads((out / LOCK).read_text())


def test_what_is_no_weights_is_named(
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(data, "load", lambda _: dataset)
    for name, content, reason in (
        ("net.pth", None, "missing"),
        ("net.pth", b"PK", "neither safetensors nor a state dict"),
        ("net.safetensors", b"version https://git-lfs", "net.safetensors is no safetensors file"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        monkeypatch.setattr("sys.argv", ["quantise", f"--weights={tmp_path / name}"])
        assert quantise.main() == 1
        assert reason in capsys.readouterr().err
