"""One's own images: from a folder to a server, and what is said of folders that won't do."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageDraw

from classifier import Client
from classifier.archiving import archive
from model.image import decode
from training import data, evaluate, train
from training.data import DataError
from training.recipe import LARGE, Recipe

from .deployment import Deployment
from .images import encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from training.trainer import Trainer

SHAPES = ("bar", "disc", "ring")


def draw(shape: str, chance: random.Random) -> Image.Image:
    """Draw a shape somewhere, in some colour, on some other."""
    paint = [
        tuple(chance.randint(0, 110) for _ in range(3)),
        tuple(chance.randint(145, 255) for _ in range(3)),
    ]
    chance.shuffle(paint)
    image = Image.new("RGB", (64, 48), paint[0])
    x, y, r = chance.randint(20, 44), chance.randint(18, 30), chance.randint(10, 16)
    pen = ImageDraw.Draw(image)
    if shape == "bar":
        pen.rectangle((x - 18, y - 3, x + 18, y + 3), fill=paint[1])
    elif shape == "disc":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=paint[1])
    else:
        pen.ellipse((x - r, y - r, x + r, y + r), outline=paint[1], width=3)
    return image


pytestmark = pytest.mark.timeout(900)  # on a busy machine


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of three classes, 100 images each to train on and 30 held out."""
    root = tmp_path_factory.mktemp("shapes")
    chance = random.Random(0)
    for part, count in (("train", 100), ("val", 30)):
        for shape in SHAPES:
            folder = root / part / shape
            folder.mkdir(parents=True)
            for i in range(count):
                draw(shape, chance).save(folder / f"{i}.png")
    return root


@pytest.fixture
def tree(shapes: Path, tmp_path: Path) -> Path:
    """A copy of the tree, to spoil."""
    return Path(shutil.copytree(shapes, tmp_path / "tree"))


@pytest.fixture(scope="module")
def deployment(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A server of what was trained on the tree."""
    folder = tmp_path_factory.mktemp("pets")
    dataset = data.load(str(shapes))
    recipe = Recipe.for_images(len(dataset.train.targets), epochs=20)
    assert train.train(recipe, dataset, folder / "out")
    weights = folder / "out" / "weights.safetensors"
    built = archive.build("pets", "1.0", weights, folder)
    assert built.name == "pets-1.0.mar"
    deployment = Deployment(folder / "server")
    deployment.add(built)
    deployment.release("1.0", ["1.0"], model="pets")
    deployment.start()
    yield deployment
    deployment.stop()


def test_what_was_trained_is_served_with_its_labels(deployment: Deployment, shapes: Path) -> None:
    client = Client(deployment.inference, "pets")
    dataset = data.load(str(shapes))
    assert dataset.labels == SHAPES
    answers = evaluate.ask(client, None, dataset.labels, dataset.held_out.pixels.numpy())
    served = (answers.predicted == dataset.held_out.targets.numpy()).mean()
    assert served >= 0.95
    answer = client.predict(encode(draw("disc", random.Random(1)))).probabilities
    assert sorted(answer) == sorted(SHAPES), "all labels, as there are fewer than five"
    assert sum(answer.values()) == pytest.approx(1)


def test_evaluation_tells_of_a_server(
    deployment: Deployment,
    shapes: Path,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(evaluate, "STRANGE", 20)
    options = ["evaluate", "--archive=pets:1.0", f"--server={deployment.inference}/"]
    monkeypatch.setattr("sys.argv", [*options, f"--data={shapes}", "--details"])
    assert evaluate.main() == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"{deployment.inference}/predictions/pets/1.0: ")
    assert told[0].endswith("% of 90 images right (val)")
    for beginning in ("bar", "expected calibration", "90% sure", "as JPEG", "enlarged"):
        assert any(line.startswith(beginning) for line in told), beginning
    assert sum("of 20 images of" in line for line in told) == 3

    for part in ("train", "val"):
        (tree / part / "ring").rename(tree / part / "rung")
    monkeypatch.setattr("sys.argv", [*options, f"--data={tree}"])
    assert evaluate.main() == 1
    assert "answers 'ring', which the data does not have" in capsys.readouterr().err


def test_the_held_out_images_are_those_of_val(shapes: Path) -> None:
    dataset = data.load(str(shapes))
    assert dataset.held_out_name == "val"
    assert dataset.train.targets.bincount().tolist() == [100, 100, 100]
    assert dataset.held_out.targets.bincount().tolist() == [30, 30, 30]
    first = decode((shapes / "val" / "bar" / "0.png").read_bytes())
    assert (dataset.held_out.pixels[0].numpy() == first).all()


def spoil_nothing_there(root: Path) -> str:
    shutil.rmtree(root / "train")
    return f"{root}/train is missing"


def spoil_no_classes(root: Path) -> str:
    shutil.rmtree(root / "train")
    (root / "train").mkdir()
    return f"{root}/train holds no classes"


def spoil_no_images(root: Path) -> str:
    for path in (root / "train" / "disc").iterdir():
        path.unlink()
    return f"{root}/train/disc holds no images"


def spoil_one_class(root: Path) -> str:
    for shape in ("disc", "ring"):
        shutil.rmtree(root / "train" / shape)
    return f"{root}/train has one class (bar)"


def spoil_corrupt_file(root: Path) -> str:
    path = root / "val" / "ring" / "7.png"
    path.write_bytes(path.read_bytes()[:100])
    return f"{path}: "


def spoil_class_missing_in_val(root: Path) -> str:
    shutil.rmtree(root / "val" / "ring")
    return f"{root}/train/ring is there, but {root}/val/ring is not"


def spoil_class_missing_in_train(root: Path) -> str:
    shutil.rmtree(root / "train" / "ring")
    return f"{root}/val/ring is there, but {root}/train/ring is not"


def spoil_name_is_not_utf8(root: Path) -> str:
    for part in ("train", "val"):
        (root / part / "ring").rename(root / part / os.fsdecode(b"r\xeeng"))
    return f"{root}/train/r\\xeeng: a class's name is its label, and this one is not UTF-8"


@pytest.mark.parametrize(
    "spoil", [value for name, value in list(globals().items()) if name.startswith("spoil_")]
)
def test_says_what_is_wrong_with_a_tree_before_training(
    tree: Path, spoil: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(spoil)
    message = spoil(tree)
    out = tree / "out"
    monkeypatch.setattr("sys.argv", ["train", f"--data={tree}", f"--out={out}"])
    monkeypatch.setattr(train, "train", lambda *_: pytest.fail("it trains"))
    assert train.main() == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_what_is_hidden_is_neither_class_nor_image(tree: Path) -> None:
    seen = data.load(str(tree))
    for folder in (tree / "train", tree / "train" / "bar" / "deep"):
        shutil.copytree(tree / "val" / "disc", folder / ".ipynb_checkpoints")
    (tree / "train" / "bar" / ".DS_Store").write_bytes(b"no image")
    dataset = data.load(str(tree))
    assert dataset.labels == SHAPES
    assert dataset.train.pixels.equal(seen.train.pixels)

    hidden = tree.rename(tree.with_name(".tree"))
    assert data.load(str(hidden)).labels == SHAPES, "what lies above the data doesn't matter"


def test_a_folder_that_is_none_is_named() -> None:
    with pytest.raises(DataError, match="absent/train is missing"):
        data.load("absent")


@pytest.mark.parametrize("count", [2, 40, 300, 5000, 50_000])
def test_the_recipe_fits_the_number_of_images(count: int) -> None:
    recipe = Recipe.for_images(count)
    assert 1 <= recipe.batch <= count
    assert recipe.epochs * (count // recipe.batch) >= 2000
    smaller = recipe.batch / Recipe.batch
    assert recipe.peak_rate == pytest.approx(Recipe.peak_rate * smaller)
    assert (recipe.teacher is not None) == (count >= LARGE)
    short = Recipe.for_images(count, epochs=1)
    assert 0 <= short.averaging < 1
    assert short.teacher is None


def test_to_measure_no_training_images_are_needed(tree: Path) -> None:
    whole = data.load(str(tree))
    shutil.rmtree(tree / "train")
    measured = data.load(str(tree), train=False)
    assert measured.labels == whole.labels
    assert measured.held_out.pixels.equal(whole.held_out.pixels)
    assert len(measured.train.targets) == 0


def test_of_few_images_none_are_put_aside(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []

    def run(trainer: Trainer, _: Path) -> bool:
        trained.append(len(trainer.targets))
        return False

    monkeypatch.setattr(train, "run", run)
    dataset = data.load(str(shapes))
    assert not train.train(Recipe.for_images(100, epochs=1), dataset, tmp_path)
    assert trained == [len(dataset.train.targets)]
