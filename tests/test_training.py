"""Training: it learns, it can be interrupted, and what it writes can be archived."""

from __future__ import annotations

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
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import get_ema_multi_avg_fn

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
    metrics,
    release,
    report,
    train,
)
from training.arrivals import as_jpeg
from training.data import DataError, Dataset, Images
from training.recipe import Recipe, Settling, one_cycle
from training.trainer import ResumeError, Trainer
from training.trainer import _move_half_way as move_half_way

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

RECIPE = Recipe(epochs=2, batch=32, peak_rate=0.05, settling=Settling(rounds=0))
SETTLING = replace(RECIPE, settling=Settling(rounds=2, epochs=1, peak_rate=0.05))


def blobs(count: int) -> Images:
    """Images whose brightness tells their class, of two."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(count) % 2
    noise = torch.randint(100, (count, 32, 32, 3), generator=generator)
    return Images((noise + 150 * targets.view(-1, 1, 1, 1)).to(torch.uint8), targets)


def trainer(recipe: Recipe = RECIPE, kind: type[Trainer] = Trainer) -> Trainer:
    return kind(recipe, blobs(128), classes=2, device="cpu")


def sha256(trained: Trainer) -> str:
    return str(digest(save(trained.weights()))["sha256"])


class InterruptedTrainer(Trainer):
    """Gets Ctrl-C in its third step, and in the second of its first round of settling."""

    def advance(self) -> tuple[float, float]:
        """Take a step; in two of them, be interrupted."""
        result = super().advance()
        if self.step in (3, 10):
            signal.raise_signal(signal.SIGINT)
        return result


def test_learns(tmp_path: Path) -> None:
    trained = trainer(replace(RECIPE, epochs=6, averaging=0.5))
    assert train.run(trained, tmp_path / "checkpoint.pt")
    assert evaluate.accuracy(TorchEngine(fit(trained.weights(), 2)), blobs(40)) == 1.0


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = trainer(SETTLING)
    assert train.run(whole, tmp_path / "whole.pt")

    checkpoint = tmp_path / "parts.pt"
    assert not train.run(trainer(SETTLING, InterruptedTrainer), checkpoint)
    for step in (3, 10):
        resumed = trainer(SETTLING, InterruptedTrainer)
        resumed.resume(checkpoint)
        assert resumed.step == step
        assert train.run(resumed, checkpoint) is (step == 10)
    assert sha256(resumed) == sha256(whole)
    assert resumed.log == whole.log
    assert sha256(trainer(replace(RECIPE, seed=1))) != sha256(trainer()), "the seed matters"


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    trainer().save(tmp_path / "checkpoint.pt")
    with pytest.raises(ResumeError, match=r"with another recipe \(epochs 2, not 3\): delete it"):
        trainer(replace(RECIPE, epochs=3)).resume(tmp_path / "checkpoint.pt")
    others = Images(blobs(128).pixels.flip(0), blobs(128).targets)
    with pytest.raises(ResumeError, match="with other images"):
        Trainer(RECIPE, others, classes=2, device="cpu").resume(tmp_path / "checkpoint.pt")
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(ResumeError, match="is damaged"):
        trainer().resume(tmp_path / "checkpoint.pt")


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
    state = read(tmp_path / "weights.safetensors", tmp_path / "weights.lock")
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
    assert read(tmp_path / "weights.safetensors", tmp_path / "weights.lock")
    assert read_labels(tmp_path / "index_to_name.json") == ["a", "b"]


def test_the_released_weights_are_of_the_recipe() -> None:
    lock = json.loads(Path("model/weights.lock").read_text())
    assert lock["recipe"] == json.loads(json.dumps(asdict(Recipe())))
    assert Recipe.for_images(50_000) == Recipe()


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    rates = [one_cycle(1.0, 0.25, step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) == 24
    assert rates[-1] == 0
    assert rates[:25] == sorted(rates[:25])
    assert rates[24:] == sorted(rates[24:], reverse=True)


def test_settles_in_rounds_each_half_way_from_what_was_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained = trainer(SETTLING)
    assert [trained.phase(step).round for step in range(16)] == [0] * 8 + [1] * 4 + [2] * 4
    assert [trained.rate(step) for step in (7, 11, 15)] == [0, 0, 0], "at the end of each"

    seen = []

    def recorded(net: Net, to: Net) -> None:
        after, before = net.fc1.weight.clone(), to.fc1.weight.clone()
        move_half_way(net, to)
        seen.append((before, after, net.fc1.weight.clone()))

    monkeypatch.setattr("training.trainer._move_half_way", recorded)
    while trained.step < trained.steps:
        trained.advance()
    assert len(seen) == 2
    for before, after, kept in seen:
        assert not torch.equal(before, after)
        assert torch.allclose(kept, (before + after) / 2)
    assert torch.equal(seen[1][0], seen[0][2]), "a round goes on from the one before"


def test_a_round_forgets_with_what_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []

    def recorded(keep: float) -> object:
        kept.append(keep)
        return get_ema_multi_avg_fn(keep)

    monkeypatch.setattr("training.trainer.get_ema_multi_avg_fn", recorded)
    trained = trainer(SETTLING)
    while trained.step < trained.steps:
        trained.advance()
    assert kept == [SETTLING.averaging, *[SETTLING.averaging_in_round(4)] * 2]
    for count in (40, 300, 5000):
        recipe = Recipe.for_images(count)
        steps = recipe.settling.epochs * (count // recipe.batch)
        assert recipe.averaging_in_round(steps) ** steps < 0.06
    assert Recipe().averaging_in_round(8 * (49_000 // 256)) == Recipe.averaging


def test_settles_on_jpegs_whose_blocks_lie_as_in_those_that_users_send() -> None:
    settling = Settling(rounds=1, jpeg=1, qualities=(75, 75))
    noise = torch.randint(256, (32, 32, 32, 3), generator=torch.Generator().manual_seed(0))
    data = Images(noise.to(torch.uint8), torch.arange(32))
    trained = Trainer(replace(RECIPE, settling=settling), data, classes=32, device="cpu")
    images, shown, targets = trained._settling_batch()
    assert sorted(targets.tolist()) == list(range(32))
    pixels = ((images / 2 + 0.5) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    expected = np.stack([as_jpeg(image, 75) for image in pixels])
    assert torch.equal(shown, normalise(torch.from_numpy(expected)))


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
    shown, _ = Trainer(
        replace(RECIPE, jpeg=share, cutout=0), images, classes=2, device="cpu"
    )._batch()
    both = normalise(torch.tensor([[[[0, 0, 0], [200, 200, 200]]]], dtype=torch.uint8)).unique()
    assert sum(not torch.isin(image, both).all() for image in shown) in as_jpeg


def test_compresses_to_what_looks_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.linspace(0, 255, 32).expand(4, 3, 32, 32).permute(0, 2, 3, 1).to(torch.uint8)
    changed = augment.compress(smooth, generator)
    assert changed.dtype == torch.uint8
    assert changed.shape == smooth.shape
    assert 0 < (changed.int() - smooth.int()).abs().float().mean() < 8


def test_compresses_by_each_quality_of_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = set()

    def recorded(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
        drawn.add(quality)
        return image

    monkeypatch.setattr(augment, "as_jpeg", recorded)
    augment.compress(blobs(128).pixels, torch.Generator().manual_seed(0), (60, 63))
    assert drawn == {60, 61, 62, 63}


def test_cuts_a_square_out_of_each_image() -> None:
    cut = augment.cut(torch.ones(256, 3, 32, 32), 8, torch.Generator().manual_seed(0))
    gone = (cut == 0).sum((1, 2, 3)) // 3
    assert gone.max() == 64
    assert gone.min() < 40, "some lie half outside"
    for edge in (cut[:, 0, 0], cut[:, 0, -1], cut[:, 0, :, 0], cut[:, 0, :, -1]):
        assert 10 < (edge == 0).any(1).sum() < 64, "on each side"
    assert len({tuple(image[0].argmin(1).tolist()) for image in cut}) > 100


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
        assert "| released | 76 | 50.00% |" in capsys.readouterr().out, "60, and two rounds of 8"

    monkeypatch.setattr("sys.argv", ["experiments", "--epochs=4", f"--out={tmp_path}"])
    assert experiments.main() == 1
    assert f"{tmp_path / 'plain.json'} is of another recipe" in capsys.readouterr().err

    (tmp_path / "plain.json").unlink()
    trainer().save(tmp_path / "plain.pt")
    assert experiments.main() == 1
    assert f"{tmp_path / 'plain.pt'} is of a run with another recipe (" in capsys.readouterr().err


def test_each_experiment_adds_one_thing() -> None:
    recipes = [asdict(recipe) for recipe in experiments.ladder().values()]
    for before, after in itertools.pairwise(recipes[:-1]):
        assert sum(before[key] != after[key] for key in before) == 1
    assert recipes[-1] == asdict(Recipe())


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


def test_the_loss_is_of_smoothed_labels_and_in_part_of_what_was_answered_before() -> None:
    recipe = replace(RECIPE, smoothing=0.2, settling=Settling(rounds=1, epochs=1, imitation=0.25))
    trained, before = trainer(recipe), Net(2).eval()
    logits, targets, loss = trained._loss()
    right = cross_entropy(logits, targets, label_smoothing=0.2)
    assert loss.item() == pytest.approx(right.item())
    logits, targets, loss = trained._alike(before)
    right = cross_entropy(logits, targets, label_smoothing=0.2)
    alike = cross_entropy(logits, before(trained._settling_batch()[0]).softmax(1))
    assert loss.item() == pytest.approx(0.75 * right.item() + 0.25 * alike.item(), rel=1e-4)


@pytest.mark.parametrize("cutout", [0, 8])
def test_blanks_as_much_of_each_image_as_the_recipe_says(cutout: int) -> None:
    white = Images(torch.full((128, 32, 32, 3), 255, dtype=torch.uint8), torch.arange(128) % 2)
    recipe = replace(RECIPE, jpeg=0, cutout=cutout)
    shown, _ = Trainer(recipe, white, classes=2, device="cpu")._batch()
    assert int((shown == 0).sum((1, 2, 3)).max()) == 3 * cutout**2


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
    monkeypatch.setattr(int8, "quantise", lambda *_: (b"graph", b"constants"))
    monkeypatch.setattr(release, "OpenVinoEngine", lambda *_: TorchEngine(net))
    monkeypatch.setattr(int8, "costs_too_much", lambda *_: True)
    found = TorchEngine(net).probabilities(held_out.pixels.numpy())
    dataset = Dataset(("dark", "light"), blobs(128), held_out, "val")
    assert release.write_int8(net, found, dataset, tmp_path) == {}
    assert "released in floats alone" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_each_image_is_seen_once_an_epoch_and_mirrored_in_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(augment, "SHIFT", 0)
    numbered = Images(blobs(128).pixels, torch.arange(128))
    trained = Trainer(replace(RECIPE, jpeg=0, cutout=0), numbered, classes=2, device="cpu")
    seen = []
    for _ in range(8):
        seen.append(trained._batch())
        trained.log.append((0.0, 0.0))
    epochs = [
        {
            int(t): image
            for images, targets in part
            for image, t in zip(images, targets, strict=True)
        }
        for part in (seen[:4], seen[4:])
    ]
    assert [len(epoch) for epoch in epochs] == [128, 128]
    assert all(torch.equal(epochs[0][i], epochs[1][i].flip(2)) for i in range(128))


def test_cifar10_comes_in_the_size_that_the_net_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    original = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
    found = mock.Mock(data=original, targets=[3, 5])
    monkeypatch.setattr(cifar10, "CIFAR10", lambda *_, **__: found)
    assert np.array_equal(cifar10.load(train=False).pixels, original)
    monkeypatch.setattr(cifar10, "SHAPE", (48, 64, 3))
    monkeypatch.setattr(cifar10, "resize", lambda image: np.asarray(image.resize((64, 48))))
    assert cifar10.load(train=False).pixels.shape == (2, 48, 64, 3)
