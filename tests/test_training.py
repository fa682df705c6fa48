"""Training: it learns, it can be interrupted, and what it writes can be archived."""

from __future__ import annotations

import io
import itertools
import json
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import nn
from torch.nn.functional import cross_entropy

from model.classifier import read_labels
from model.engine_torch import TorchEngine
from model.image import normalise
from model.net import Net
from model.weights import INT8, digest, fit, read
from training import (
    augment,
    cifar10,
    data,
    evaluate,
    experiments,
    int8,
    jpeg,
    metrics,
    release,
    report,
    train,
)
from training.arrivals import encode
from training.data import DataError, Dataset, Images
from training.recipe import RELEASED, Recipe, one_cycle
from training.trainer import ResumeError, Trainer, has_bfloat16, new_net

if TYPE_CHECKING:
    from collections.abc import Sequence

RECIPE = Recipe(epochs=2, batch=32, peak_rate=0.05)
TAUGHT = replace(RECIPE, imitation=1, mixing=0.5, teacher=replace(RECIPE, epochs=1, jpeg=0))


def blobs(count: int) -> Images:
    """Images whose brightness tells their class, of two."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(count) % 2
    noise = torch.randint(100, (count, 32, 32, 3), generator=generator)
    return Images((noise + 150 * targets.view(-1, 1, 1, 1)).to(torch.uint8), targets)


def trainer(recipe: Recipe = RECIPE, images: Images | None = None, classes: int = 2) -> Trainer:
    return Trainer(recipe, images or blobs(128), classes, new_net(recipe, classes), "cpu")


class Few(nn.Module):
    """A teacher that takes no time."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm2d(3), nn.Linear(3, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map normalised images, float N×3×32×32, to logits, float N×classes."""
        logits: torch.Tensor = self.last(self.norm(images).amax((2, 3)))
        return logits


def sha256(trained: Trainer) -> str:
    return str(digest(save(trained.weights()))["sha256"])


def test_learns(tmp_path: Path) -> None:
    trained = trainer(replace(RECIPE, epochs=6, averaging=0.5))
    assert train.run(trained, tmp_path / "checkpoint.pt")
    assert evaluate.accuracy(TorchEngine(fit(trained.weights(), 2)), blobs(40)) == 1.0


def test_an_interrupted_run_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "new_teacher", seeded)
    monkeypatch.setattr(train, "device", lambda: "cpu")  # on CUDA weights are others each time
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    dataset = Dataset(("dark", "light"), blobs(128), blobs(40), "val")
    assert train.train(TAUGHT, dataset, whole)

    at = {"teacher.pt": 2, "net.pt": 3}  # the steps in which Ctrl-C comes
    advance = Trainer.advance

    def interrupted(run: Trainer) -> None:
        advance(run)
        if run.steps_per_epoch == 4 and run.step == at[train.CHECKPOINTS[run.teacher is not None]]:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", interrupted)
        patch.setattr(train, "_seconds_a_step", lambda *_: [0, 0])
        for name in at:
            assert not train.train(TAUGHT, dataset, parts)
            assert torch.load(parts / name)["step"] == at[name]
    assert train.train(TAUGHT, dataset, parts)
    first, second = (torch.load(folder / "net.pt") for folder in (whole, parts))
    assert torch.equal(first["log"], second["log"])
    assert (whole / "weights.safetensors").read_bytes() == (
        parts / "weights.safetensors"
    ).read_bytes()
    assert sha256(trainer(replace(RECIPE, seed=1))) != sha256(trainer()), "the seed matters"
    (parts / "teacher.pt").unlink()
    with pytest.raises(ResumeError, match=r"net\.pt learnt from a teacher that is gone"):
        train.train(TAUGHT, dataset, parts)


def seeded(recipe: Recipe, classes: int) -> Few:
    """A teacher with the recipe's random weights."""
    torch.manual_seed(recipe.seed)
    return Few(classes)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    trainer().save(tmp_path / "checkpoint.pt")
    with pytest.raises(ResumeError, match=r"with another recipe \(epochs 2, not 3\): delete it"):
        trainer(replace(RECIPE, epochs=3)).resume(tmp_path / "checkpoint.pt")
    others = Images(blobs(128).pixels.flip(0), blobs(128).targets)
    with pytest.raises(ResumeError, match="with other images"):
        trainer(images=others).resume(tmp_path / "checkpoint.pt")
    with pytest.raises(ResumeError, match=r"\(teacher None, not one of 1 epochs\)"):
        trainer(replace(RECIPE, teacher=TAUGHT.teacher)).resume(tmp_path / "checkpoint.pt")
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(ResumeError, match="is damaged"):
        trainer().resume(tmp_path / "checkpoint.pt")


def test_a_checkpoint_of_a_gpu_goes_on_on_a_cpu(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    trained = trainer()
    trained.advance()
    trained.save(path)
    state = torch.load(path)
    for group in state["optimizer"]["param_groups"]:
        group.update(lr=torch.tensor(0.5), fused=True)  # as on CUDA
    torch.save(state, path)
    resumed = trainer()
    resumed.resume(path)
    for run in (trained, resumed):
        run.advance()
    assert sha256(resumed) == sha256(trained)
    assert not any(group["fused"] for group in resumed.optimizer.param_groups)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_learns_by_a_graph_and_goes_on(tmp_path: Path) -> None:
    recipe = replace(TAUGHT, epochs=4)
    runs = [
        Trainer(recipe, blobs(128), 2, new_net(recipe, 2), device, seeded(recipe, 2))
        for device in ("cuda", "cuda", "cpu")
    ]
    for run, other in itertools.pairwise(runs):
        for _ in range(6):  # more than warm up
            run.advance()
        run.save(tmp_path / "checkpoint.pt")
        other.resume(tmp_path / "checkpoint.pt")
    assert runs[-1].step == 12
    runs[-1].advance()
    assert runs[-1].log[:13].isfinite().all()
    assert runs[-1].log[:13, 0].min() > 0


@pytest.mark.parametrize("epochs", ["0", "-1", "many"])
def test_epochs_that_are_none_are_refused(
    epochs: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train", f"--epochs={epochs}"])
    with pytest.raises(SystemExit):
        train.main()
    assert "--epochs: invalid" in capsys.readouterr().err


def test_an_interrupt_that_comes_while_a_checkpoint_is_written_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    trained = trainer()
    trained.save(path)

    def half(_: object, target: Path) -> None:
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        trained.save(path)
    trainer().resume(path)


def test_what_is_written_is_locked(tmp_path: Path) -> None:
    trained = trainer()
    assert train.run(trained, tmp_path / "checkpoint.pt")
    dataset = Dataset(("dark", "light"), blobs(128), blobs(40), "val")
    measured = release.write(trained, dataset, blobs(10), tmp_path)
    state = read(tmp_path)
    assert state.keys() == trained.net.state_dict().keys()
    lock = json.loads((tmp_path / "weights.lock").read_text())
    assert lock["accuracy"] == {"val": measured.accuracy}
    assert lock["recipe"]["epochs"] == 2
    assert lock["temperature"] == 1, "10 images are too few to fit one to"
    assert read_labels(tmp_path / "index_to_name.json") == ["dark", "light"]
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["accuracy"] == measured.accuracy
    assert len(written["epochs"]) == 2
    for name in ("curves.png", "confusion.png", "calibration.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 500


def test_a_label_that_looks_like_a_formula_is_drawn_as_it_is(tmp_path: Path) -> None:
    found = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    measured = metrics.measure(found, np.array([0, 1]), ("$^_$", "a_$b$"))
    report.confusion(measured, "val").savefig(tmp_path / "confusion.png")


def test_names_and_numbers_are_drawn_where_they_can_be_read() -> None:
    for classes in (report.LEGIBLE, report.LEGIBLE + 1):
        found, labels = np.eye(classes, dtype=np.float32), [f"{n}" for n in range(classes)]
        drawn = report.confusion(metrics.measure(found, np.arange(classes), labels), "val")
        assert len(drawn.axes[0].texts) == (classes**2 if classes == report.LEGIBLE else 0)


def test_a_report_that_can_t_be_drawn_loses_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space is left")

    monkeypatch.setattr(report, "confusion", fail)
    with pytest.raises(OSError, match="no space"):
        release.write(
            trainer(), Dataset(("a", "b"), blobs(128), blobs(40), "val"), blobs(9), tmp_path
        )
    assert read(tmp_path)
    assert read_labels(tmp_path / "index_to_name.json") == ["a", "b"]


def test_the_released_weights_are_of_the_recipe() -> None:
    lock = json.loads(Path("model/weights.lock").read_text())
    assert lock["recipe"] == json.loads(json.dumps(asdict(RELEASED)))
    assert Recipe.for_images(50_000) == RELEASED


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    rates = [one_cycle(1.0, 0.25, step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) == 24
    assert rates[-1] == 0
    assert rates[:25] == sorted(rates[:25])
    assert rates[24:] == sorted(rates[24:], reverse=True)


def test_a_teacher_is_trained_first_and_learnt_from() -> None:
    first, second = train.course(TAUGHT, blobs(128), 2)
    assert second.teacher is first.average, "as it is by then"
    assert len(list(first.net.parameters())) > len(list(second.net.parameters()))
    first.advance()
    kept = [tensor.clone() for tensor in first.average.state_dict().values()]
    second.advance()
    assert all(map(torch.equal, kept, first.average.state_dict().values())), "it learns no more"


def test_the_average_is_over_the_steps() -> None:
    trained = trainer(replace(RECIPE, averaging=0.75))
    expected: dict[str, torch.Tensor] = {}
    for _ in range(3):
        trained.advance()
        now = {k: v.clone() for k, v in trained.net.state_dict().items() if v.is_floating_point()}
        expected = {k: torch.lerp(expected.get(k, v), v, 0.25) for k, v in now.items()}
    found = trained.average.state_dict()
    assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in expected.items())


def test_shifts_move_in_reflections() -> None:
    images = torch.arange(32.0).view(1, 1, 1, 32).expand(64, 3, 32, 32)
    shifted = augment.shift(images, torch.Generator().manual_seed(0))
    lefts = set()
    for image in shifted:
        row = image[0, 0].tolist()
        offset = row.index(16) - 16
        assert -augment.SHIFT <= offset <= augment.SHIFT
        assert row == [31 - abs(31 - abs(x - offset)) for x in range(32)]
        lefts.add(offset)
    assert len(lefts) > 4


def test_shifts_go_both_ways_each_by_itself() -> None:
    numbered = torch.arange(32.0 * 32).view(1, 1, 32, 32).expand(256, 3, 32, 32)
    shifted = augment.shift(numbered, torch.Generator().manual_seed(0))
    found = {divmod(int(image[0, 16, 16]), 32) for image in shifted}
    around = range(16 - augment.SHIFT, 17 + augment.SHIFT)
    assert {row for row, _ in found} == {column for _, column in found} == set(around)
    assert len(found) > 60, "of 81 pairs"


def test_flips_those_that_are_asked_for() -> None:
    images = torch.rand(2, 3, 4, 4)
    flipped = augment.flip(images, torch.tensor([True, False]))
    assert torch.equal(flipped[0], images[0].flip(2))
    assert torch.equal(flipped[1], images[1])


@pytest.mark.parametrize(("share", "as_jpeg"), [(0, [0]), (0.5, range(8, 25)), (1, [32])])
def test_shows_that_share_of_the_images_as_jpeg(share: float, as_jpeg: Sequence[int]) -> None:
    dots = 200 * torch.randint(2, (128, 32, 32, 3), generator=torch.Generator().manual_seed(0))
    images = Images(dots.to(torch.uint8), torch.arange(128))
    recipe = replace(RECIPE, jpeg=share, cutout=0)
    images_as_they_are, shown, _ = trainer(recipe, images, 128)._batch()
    both = torch.tensor([0, 200], dtype=torch.uint8)
    assert torch.isin(images_as_they_are, both).all()
    assert sum(not torch.isin(image, both).all() for image in shown) in as_jpeg


@pytest.mark.parametrize("quality", [30, 50, 75, 95])
@pytest.mark.parametrize("size", [(32, 32), (21, 37)])
def test_shows_what_comes_out_of_a_jpeg(quality: int, size: tuple[int, int]) -> None:
    with Image.open("samples/cat.jpg") as photo:
        small = photo.resize((160, 120))  # of fine detail
        parts = [small.crop((x, 40, x + size[0], 40 + size[1])) for x in range(0, 120, 8)]
    images = np.stack([np.asarray(part) for part in parts])
    files = [encode(image, "JPEG", quality=quality, subsampling="4:2:0") for image in images]
    expected = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files]).astype(int)
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    shown = jpeg.compress(planes, torch.full((len(images),), quality))
    found = shown.permute(0, 2, 3, 1).numpy()
    assert abs(expected - images).mean() > 3 * abs(found - expected).mean()
    assert (abs(found - expected) <= 1).mean() > 0.75
    assert abs(found - expected).mean() < 1


def test_jpegs_are_of_each_quality_of_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: set[int] = set()

    def recorded(images: torch.Tensor, qualities: torch.Tensor) -> torch.Tensor:
        drawn.update(qualities.tolist())
        return images

    monkeypatch.setattr(augment, "QUALITIES", (60, 63))
    monkeypatch.setattr(jpeg, "compress", recorded)
    augment.compress(torch.zeros(128, 3, 32, 32), 0.5, torch.Generator().manual_seed(0))
    assert drawn == {60, 61, 62, 63}


def test_blends_that_share_of_the_images_with_their_opposites() -> None:
    weights = augment.blend(0.25, 4000, torch.Generator().manual_seed(0))
    blended = weights[weights > 0]
    assert 900 < len(blended) < 1100
    assert blended.mean() == pytest.approx(0.5, abs=0.05)
    rows = torch.tensor([[0.0], [10.0], [20.0], [30.0]])
    mixed = augment.mix(rows, torch.tensor([[0.0], [0.5], [0.25], [1.0]]))
    assert mixed.flatten().tolist() == [0, 15, 17.5, 0]
    images = rows.view(4, 1, 1, 1).expand(4, 3, 2, 2)
    assert augment.mix(images, torch.ones(4, 1))[0].unique().tolist() == [30]


def test_cuts_a_square_out_of_each_image() -> None:
    cut = augment.cut(torch.ones(256, 3, 32, 32), 8, torch.Generator().manual_seed(0))
    gone = (cut == augment.BLANK).sum((1, 2, 3)) // 3
    assert gone.max() == 64
    assert gone.min() < 40, "some lie half outside"
    for edge in (cut[:, 0, 0], cut[:, 0, -1], cut[:, 0, :, 0], cut[:, 0, :, -1]):
        assert 10 < (edge == augment.BLANK).any(1).sum() < 64, "on each side"
    assert len({tuple(image[0].argmax(1).tolist()) for image in cut}) > 100


def test_measures_what_is_asked_of_three_labels() -> None:
    found = np.array(
        [[1.0, 0, 0], [0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0, 0.25, 0.75], [0, 0, 1]], np.float32
    )
    measured = metrics.measure(found, np.array([0, 0, 0, 1, 2]), ("a", "b", "c"))
    assert (measured.images, measured.accuracy) == (5, 0.6)
    assert measured.confusion == [[2, 1, 0], [0, 0, 1], [0, 0, 1]], "rows are what they are"
    assert measured.by_label == {"a": pytest.approx(2 / 3), "b": 0, "c": 1}
    assert measured.log_loss == pytest.approx(np.log([2, 4, 4]).sum() / 5)
    half, most, sure = measured.reliability
    assert half == metrics.Step(2, 0.5, 0.5), "both of 0.5"
    assert most == metrics.Step(1, 0.75, 0)
    assert sure == metrics.Step(2, 1, 1)
    assert measured.calibration_error == pytest.approx(0.75 / 5)


def test_too_sure_and_too_timid_do_not_cancel_out() -> None:
    confidence = np.array([0.5, 0.5, 1.0, 1.0], np.float32)
    right = np.array([True, True, False, True])
    assert metrics.calibration_error(confidence, right) == pytest.approx(0.5)
    nearly = np.array([0.95, 1.0], np.float32)  # 1 has no bin of its own
    (one,) = metrics.reliability(nearly, right[:2])
    assert (one.images, one.accuracy) == (2, 1)
    assert one.confidence == pytest.approx(0.975)


def test_calibration_changes_how_sure_but_not_of_what() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(4000, 10)) * 2
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = np.array([generator.choice(10, p=p) for p in true])
    timid = metrics.at_temperature(true.astype(np.float32), 2)
    assert metrics.best_temperature(timid, targets) == pytest.approx(0.5, abs=0.05)
    right = true.argmax(1) == targets
    assert metrics.calibration_error(timid.max(1), right) > 0.1
    assert metrics.calibration_error(metrics.at_temperature(timid, 0.5).max(1), right) < 0.03

    state = trainer()
    found, scaled = (
        evaluate.probabilities(TorchEngine(fit(weights, 2)), blobs(20).pixels.numpy())
        for weights in (state.weights(), state.weights(temperature=2))
    )
    assert np.abs(scaled - metrics.at_temperature(found, 2)).max() < 1e-6


def test_what_is_written_is_calibrated(tmp_path: Path) -> None:
    trained = trainer()
    assert train.run(trained, tmp_path / "checkpoint.pt")
    dataset = Dataset(("dark", "light"), blobs(128), blobs(40), "val")
    sure = release.write(trained, dataset, blobs(release.FEWEST), tmp_path)
    lock = json.loads((tmp_path / "weights.lock").read_text())
    assert lock["temperature"] < 0.7, "it is right of all, and could be surer"
    assert sure.log_loss < release.write(trained, dataset, blobs(10), tmp_path).log_loss


def test_a_split_is_drawn_by_its_seed() -> None:
    first, again, other = (data.split(blobs(40), 10, seed)[1].pixels for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_experiments_measure_what_was_held_out(tmp_path: Path) -> None:
    train_images, held_out = data.split(blobs(128), 28, seed=0)
    assert (len(train_images.targets), len(held_out.targets)) == (100, 28)
    together = torch.cat([train_images.pixels, held_out.pixels])
    assert together.long().sum() == blobs(128).pixels.long().sum()

    recipe = replace(RECIPE, averaging=0.5, epochs=6)
    found = experiments.experiment(recipe, train_images, held_out, tmp_path / "x.pt")
    assert set(found["accuracy"].values()) == {1.0}
    assert experiments.experiment(recipe, train_images, held_out, tmp_path / "x.pt") == {
        **found,
        "seconds": 0,
    }, "it goes on from the end"
    wrong = Images(held_out.pixels, 1 - held_out.targets)
    found_wrong = experiments.experiment(recipe, train_images, wrong, tmp_path / "x.pt")
    assert set(found_wrong["accuracy"].values()) == {0.0}, "of the held-out images, not the others"
    assert found_wrong["calibration_error"] > 0.5
    assert "| x | 6 | 100.00% |" in experiments.table({"x": found})


def test_the_experiment_with_a_teacher_keeps_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As each of the ladder: its checkpoint is called as it is itself."""
    monkeypatch.setattr(train, "new_teacher", seeded)
    train_images, held_out = data.split(blobs(128), 28, seed=0)
    for name in experiments.ladder():
        path = tmp_path / f"{name}.pt"
        assert experiments.experiment(TAUGHT, train_images, held_out, path)["accuracy"]
    assert len(list(tmp_path.glob("*.pt"))) == len(experiments.ladder()) + 1


def half_right(recipe: Recipe, *_: object) -> dict[str, Any]:
    """What an experiment may have found."""
    return {"recipe": asdict(recipe), "accuracy": {"averaged weights": 0.5}}


def test_interrupted_experiments_tell_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = iter(["the first"])

    def experiment(recipe: Recipe, *_: object) -> dict[str, Any]:
        if next(turns, None) is None:
            raise KeyboardInterrupt
        return half_right(recipe)

    monkeypatch.setattr(cifar10, "load", lambda **_: blobs(6000))
    monkeypatch.setattr(experiments, "experiment", experiment)
    monkeypatch.setattr("sys.argv", ["experiments", "--epochs=3", "--out", str(tmp_path / "new")])
    for _ in range(2):  # the second finds what the first has done
        assert experiments.main() == 130
        said = capsys.readouterr().out
        assert "| plain | 3 | 50.00% |" in said
        assert f"goes on from {tmp_path / 'new'}" in said


def test_results_and_checkpoints_of_other_experiments_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cifar10, "load", lambda **_: blobs(6000))
    with monkeypatch.context() as patch:
        patch.setattr(experiments, "experiment", half_right)
        patch.setattr("sys.argv", ["experiments", "--epochs=3", f"--out={tmp_path}"])
        assert experiments.main() == 0
        assert f"| released | {RELEASED.epochs} | 50.00% |" in capsys.readouterr().out

    monkeypatch.setattr("sys.argv", ["experiments", "--epochs=4", f"--out={tmp_path}"])
    assert experiments.main() == 1
    assert f"{tmp_path / 'plain.json'} is of another recipe" in capsys.readouterr().err

    (tmp_path / "plain.json").unlink()
    trainer().save(tmp_path / "plain.pt")
    assert experiments.main() == 1
    assert f"{tmp_path / 'plain.pt'} is of a run with another recipe (" in capsys.readouterr().err


def test_each_experiment_adds_to_the_one_before() -> None:
    recipes = [asdict(recipe) for recipe in experiments.ladder().values()]
    changes = [
        {key for key in before if before[key] != after[key]}
        for before, after in itertools.pairwise(recipes)
    ]
    teaching = {"teacher", "imitation", "smoothing", "dropout", "jpeg"}
    assert changes == [
        {"dropout"},
        {"smoothing"},
        {"jpeg"},
        {"cutout"},
        {"epochs", "averaging"},
        teaching,
        {"mixing", "cutout"},
    ]
    assert recipes[-1] == asdict(RELEASED)


def test_where_cifar10_is_not_and_can_not_be_had_it_says_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(folder: Path, **_: object) -> None:
        folder.mkdir()  # torchvision makes it before it downloads
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CIFAR10_ROOT", raising=False)
    monkeypatch.setattr(cifar10, "CIFAR10", offline)
    with pytest.raises(
        DataError, match=r"no network\. DATA=… .* in which cifar-10-batches-py/ lies"
    ):
        cifar10.load(train=False)
    assert not list(tmp_path.iterdir())


def test_says_where_there_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no cifar-10-batches-py"):
        cifar10.load(train=True, root=str(tmp_path))
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match="can't be read"):
        cifar10.load(train=True, root=str(tmp_path))


def test_finds_the_data_where_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path))
    assert cifar10.find() == tmp_path
    assert cifar10.find("elsewhere") is None


def test_weights_decay_but_norms_and_biases_do_not() -> None:
    weights, others = trainer().optimizer.param_groups
    assert {p.ndim for p in weights["params"]} == {2, 4}
    assert {p.ndim for p in others["params"]} == {1}
    assert (weights["weight_decay"], others["weight_decay"]) == (RECIPE.decay, 0)
    assert len(weights["params"] + others["params"]) == len(list(Net(2).parameters()))


@pytest.mark.parametrize(("imitation", "mixing"), [(0, 0), (0.25, 0), (1, 0.5)])
def test_the_loss_is_of_smoothed_labels_and_of_what_the_teacher_answers(
    imitation: float, mixing: float
) -> None:
    recipe = replace(RECIPE, smoothing=0.2, imitation=imitation, mixing=mixing)
    teacher = seeded(recipe, 2)
    trained = Trainer(recipe, blobs(128), 2, new_net(recipe, 2), "cpu", teacher)
    images, shown, wanted = trained._batch()
    assert wanted.min() == pytest.approx(0.1)
    assert mixing == 0 or len(wanted.unique()) > 2
    torch.manual_seed(0)
    loss, _ = trained._learn(images, shown, wanted)
    fresh = new_net(recipe, 2).train()
    torch.manual_seed(0)
    logits = fresh(normalise(shown))
    answers = teacher(normalise(images)).softmax(1)
    right, alike = cross_entropy(logits, wanted), cross_entropy(logits, answers)
    expected = (1 - imitation) * right.item() + imitation * alike.item()
    assert loss.item() == pytest.approx(expected, rel=1e-2 if has_bfloat16("cpu") else 1e-4)


@pytest.mark.parametrize("cutout", [0, 8])
def test_blanks_as_much_of_each_image_as_the_recipe_says(cutout: int) -> None:
    white = Images(torch.full((128, 32, 32, 3), 255, dtype=torch.uint8), torch.arange(128) % 2)
    images, shown, _ = trainer(replace(RECIPE, jpeg=0, cutout=cutout), white)._batch()
    assert int((shown == 128).sum((1, 2, 3)).max()) == 3 * cutout**2
    assert torch.equal(images, shown), "the teacher is shown the same"


@pytest.mark.parametrize(("is_whole", "status"), [(True, 0), (False, 130)])
def test_its_exit_status_tells_whether_it_was_interrupted(
    monkeypatch: pytest.MonkeyPatch, is_whole: bool, status: int
) -> None:
    monkeypatch.setattr(data, "load", lambda _: Dataset(("a", "b"), blobs(40), blobs(10), "val"))
    monkeypatch.setattr(train, "train", lambda *_: is_whole)
    monkeypatch.setattr("sys.argv", ["train"])
    assert train.main() == status


def test_integers_that_cost_too_much_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in INT8:
        (tmp_path / name).write_text("of an earlier run")
    net, held_out = Net(2).eval(), blobs(40)
    monkeypatch.setattr(int8, "quantise", lambda *_, **__: (b"graph", b"constants"))
    monkeypatch.setattr(release, "OpenVinoEngine", lambda *_: TorchEngine(net))
    monkeypatch.setattr(int8, "costs_too_much", lambda *_: True)
    found = TorchEngine(net).probabilities(held_out.pixels.numpy())
    dataset = Dataset(("dark", "light"), blobs(128), held_out, "val")
    assert release.write_int8(net, found, dataset, tmp_path) == {}
    assert "released in floats alone" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_integers_of_all_channels_are_written_where_fewer_cost_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, held_out, judged = Net(2).eval(), blobs(40), []

    def quantise(*_: object, slim: bool) -> tuple[bytes, bytes]:
        judged.append(slim)
        return b"slim" if slim else b"whole", b"constants"

    monkeypatch.setattr(int8, "quantise", quantise)
    monkeypatch.setattr(release, "OpenVinoEngine", lambda *_: TorchEngine(net))
    monkeypatch.setattr(int8, "costs_too_much", lambda *_: judged == [True])
    found = TorchEngine(net).probabilities(held_out.pixels.numpy())
    dataset = Dataset(("dark", "light"), blobs(128), held_out, "val")
    assert release.write_int8(net, found, dataset, tmp_path)["int8"]["agreement"] == 1
    assert judged == [True, False]
    assert (tmp_path / INT8[0]).read_bytes() == b"whole"


def test_each_image_is_seen_once_an_epoch_and_mirrored_in_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(augment, "SHIFT", 0)
    numbered = Images(blobs(128).pixels, torch.arange(128))
    trained = trainer(replace(RECIPE, jpeg=0, cutout=0), numbered, 128)
    seen = []
    for _ in range(8):
        images, _, wanted = trained._batch()
        seen.append(dict(zip(wanted.argmax(1).tolist(), images, strict=True)))
        trained.step += 1
    epochs = [dict(itertools.chain(*map(dict.items, part))) for part in (seen[:4], seen[4:])]
    assert [len(epoch) for epoch in epochs] == [128, 128]
    assert all(torch.equal(epochs[0][i], epochs[1][i].flip(1)) for i in range(128))


def test_cifar10_comes_in_the_size_that_the_net_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    original = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
    found = mock.Mock(data=original, targets=[3, 5])
    monkeypatch.setattr(cifar10, "CIFAR10", lambda *_, **__: found)
    assert np.array_equal(cifar10.load(train=False).pixels, original)
    monkeypatch.setattr(cifar10, "SHAPE", (48, 64, 3))
    monkeypatch.setattr(cifar10, "resize", lambda image: np.asarray(image.resize((64, 48))))
    assert cifar10.load(train=False).pixels.shape == (2, 48, 64, 3)
