"""One training run, step by step; it can stop after any step and go on later.

All randomness of a step is drawn from the seed and the step's number, so a run that was
interrupted and resumed gives the same weights as one that was not.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from model.image import normalise
from model.net import Net

from .augment import compress, cut, flip, shift
from .recipe import one_cycle

if TYPE_CHECKING:
    from pathlib import Path

    from .data import Images
    from .recipe import Recipe


class ResumeError(ValueError):
    """A checkpoint belongs to another run."""


class NetError(ValueError):
    """The net is another one than the recipe was made for."""


class Phase(NamedTuple):
    """Where a step belongs.

    Attributes:
        round: of settling, counted from 1; 0 before.
        step: its place in the phase, from 0 on.
        steps: of the phase.
    """

    round: int
    step: int
    steps: int


class Trainer:
    """The state of a run and what one step does to it.

    Args:
        recipe: how to train.
        data: the training images.
        classes: how many outputs the net has.
        device: where to train.

    Raises:
        NetError: `model/net.py` holds another net than the project's.
    """

    def __init__(self, recipe: Recipe, data: Images, classes: int, device: str) -> None:
        if "dropout" not in inspect.signature(Net).parameters:
            raise NetError(
                "model/net.py holds a net that this recipe is not made for: train it by code of "
                "your own, and go on as docs/own-net.md tells"
            )
        torch.manual_seed(recipe.seed)
        self.recipe, self.device = recipe, device
        self.pixels, self.targets = data.pixels.to(device), data.targets.to(device)
        once = self._generator(-1)
        self.mirrored = torch.rand(len(data.targets), generator=once) < 0.5
        self.jpegs = compress(data.pixels, once).to(device)
        self.before: Net | None = None  # the net before this round of settling, if it is one
        self.images = _fingerprint(data)
        self.log: list[tuple[float, float]] = []  # loss and accuracy in [0, 1] of each step
        self.steps_per_epoch = len(data.targets) // recipe.batch
        self.epochs = recipe.epochs + recipe.settling.rounds * recipe.settling.epochs
        self.steps = self.epochs * self.steps_per_epoch
        self._begin(Net(classes, recipe.dropout).to(device, memory_format=torch.channels_last))  # type: ignore[call-overload]

    @property
    def step(self) -> int:
        """How many steps were taken."""
        return len(self.log)

    def advance(self) -> tuple[float, float]:
        """Take one step; return its loss and its accuracy in [0, 1]."""
        phase = self.phase(self.step)
        if phase.round and phase.step == 0:
            average = cast("Net", self.average.module)
            self.before = copy.deepcopy(average).eval()
            self._begin(average)
        before = self.before
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step)
        self.net.train()
        with torch.autocast(self.device, torch.bfloat16, enabled=has_bfloat16(self.device)):
            logits, targets, loss = self._loss() if before is None else self._alike(before)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.average.update_parameters(self.net)
        if before is not None and phase.step == phase.steps - 1:
            _move_half_way(self.average.module, before)
        right = (logits.argmax(1) == targets).float().mean()
        self.log.append((loss.item(), right.item()))
        return self.log[-1]

    def phase(self, step: int) -> Phase:
        """Return where a step in [0, steps) belongs."""
        first = self.recipe.epochs * self.steps_per_epoch
        if step < first:
            return Phase(0, step, first)
        each = self.recipe.settling.epochs * self.steps_per_epoch
        done, place = divmod(step - first, each)
        return Phase(1 + done, place, each)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step in [0, steps)."""
        phase = self.phase(step)
        how = self.recipe.settling if phase.round else self.recipe
        return one_cycle(how.peak_rate, how.warmup, phase.step, phase.steps)

    def weights(self, temperature: float = 1.0) -> dict[str, torch.Tensor]:
        """Return the averaged state dict, on the CPU, with logits divided by a temperature."""
        state = dict(self.average.module.state_dict())
        for name in ("fc2.weight", "fc2.bias"):
            state[name] = state[name] / temperature
        return {name: tensor.cpu().contiguous() for name, tensor in state.items()}

    def save(self, path: Path) -> None:
        """Write a checkpoint; one that is there is replaced only when the new one is whole."""
        partial = path.with_suffix(".partial")
        torch.save(self._state(), partial)
        os.replace(partial, path)

    def resume(self, path: Path) -> None:
        """Go on where a checkpoint stopped.

        Raises:
            ResumeError: the checkpoint is damaged, or of another recipe or other images.
        """
        remedy = "delete it, or name another OUT"
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # whatever the unpickler makes of the bytes
            raise ResumeError(f"{path} is damaged: {remedy}") from error
        if unlike := _unlike(state.get("recipe", {}), asdict(self.recipe)):
            raise ResumeError(f"{path} is of a run with another recipe ({unlike}): {remedy}")
        if state.get("images") != self.images:
            raise ResumeError(f"{path} is of a run with other images: {remedy}")
        self.log = state["log"]
        self._begin(self.net)  # as the phase of the checkpoint began: its average keeps its own
        self.net.load_state_dict(state["net"])
        if state["before"] is not None:
            self.before = copy.deepcopy(self.net).eval()
            self.before.load_state_dict(state["before"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _state(self) -> dict[str, Any]:
        return {
            "recipe": asdict(self.recipe),
            "images": self.images,
            "log": self.log,
            "net": self.net.state_dict(),
            "before": None if self.before is None else self.before.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def _begin(self, net: Net) -> None:
        """Begin to train a net: its average and the optimizer know nothing of what was before."""
        recipe, phase = self.recipe, self.phase(self.step)
        self.net = net
        keep = recipe.averaging_in_round(phase.steps) if phase.round else recipe.averaging
        average = get_ema_multi_avg_fn(keep)
        self.average = AveragedModel(net, multi_avg_fn=average, use_buffers=True)
        weights = {"params": [p for p in net.parameters() if p.ndim > 1]}
        others = {"params": [p for p in net.parameters() if p.ndim == 1]}  # norms and biases
        groups: list[dict[str, Any]] = [{**weights, "weight_decay": recipe.decay}, others]
        self.optimizer = torch.optim.SGD(
            groups, lr=recipe.peak_rate, momentum=recipe.momentum, nesterov=True
        )

    def _loss(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return this step's logits, targets and loss."""
        inputs, targets = self._batch()
        logits = self.net(inputs).float()
        loss = cross_entropy(logits, targets, label_smoothing=self.recipe.smoothing)
        return logits, targets, loss

    def _alike(self, before: Net) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return this step's logits, targets and loss, in part by what a net answered before."""
        images, shown, targets = self._settling_batch()
        with torch.no_grad():
            answers = before(images).float().softmax(1)
        logits = self.net(shown).float()
        right = cross_entropy(logits, targets, label_smoothing=self.recipe.smoothing)
        alike = cross_entropy(logits, answers)
        return logits, targets, torch.lerp(right, alike, self.recipe.settling.imitation)

    def _draw(self) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
        """Draw which images come in this step, which of them mirrored, and what else is drawn by.

        Each is mirrored in every second epoch.
        """
        epoch, place = divmod(self.step, self.steps_per_epoch)
        order = torch.randperm(len(self.targets), generator=self._generator(-2 - epoch))
        chosen = order[place * self.recipe.batch :][: self.recipe.batch]
        generator = self._generator(self.step)
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # for dropout
        return chosen, self.mirrored[chosen] ^ bool(epoch % 2), generator

    def _settling_batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return this step's images as they are, as they are shown, and their targets.

        A JPEG is made of the image that was shifted, so that its blocks lie as in test images.
        """
        chosen, mirror, generator = self._draw()
        settling = self.recipe.settling
        as_jpeg = torch.rand(len(chosen), generator=generator) < settling.jpeg
        chosen, mirror = chosen.to(self.device), mirror.to(self.device)
        whole = self.pixels[chosen].float().permute(0, 3, 1, 2)
        varied = shift(flip(whole, mirror), generator).permute(0, 2, 3, 1)
        pixels = varied.byte().contiguous().cpu()
        shown = pixels.clone()
        if as_jpeg.any():
            shown[as_jpeg] = compress(pixels[as_jpeg], generator, settling.qualities)
        images, inputs = (normalise(p.to(self.device)) for p in (pixels, shown))
        return images, inputs, self.targets[chosen]

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return this step's images, varied, and their targets."""
        chosen, mirror, generator = self._draw()
        as_jpeg = torch.rand(len(chosen), generator=generator) < self.recipe.jpeg
        chosen, as_jpeg, mirror = (t.to(self.device) for t in (chosen, as_jpeg, mirror))
        pixels = torch.where(as_jpeg.view(-1, 1, 1, 1), self.jpegs[chosen], self.pixels[chosen])
        images = shift(flip(normalise(pixels), mirror), generator)
        if self.recipe.cutout:
            images = cut(images, self.recipe.cutout, generator)
        return images, self.targets[chosen]

    def _generator(self, stream: int) -> torch.Generator:
        """Return the random numbers of one purpose: the seed's stream of that number."""
        return torch.Generator().manual_seed((self.recipe.seed << 32) + stream + 2**31)


@torch.no_grad()
def _move_half_way(net: torch.nn.Module, to: torch.nn.Module) -> None:
    """Replace the weights of a net, and its norms' statistics, by the mean of its and another's."""
    for mine, other in zip(net.state_dict().values(), to.state_dict().values(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(other, 0.5)


def _unlike(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    """Tell in which numbers a recipe is another than mine."""
    return ", ".join(
        f"{name} {theirs.get(name)}, not {value}"
        for name, value in {**dict.fromkeys(theirs), **mine}.items()
        if theirs.get(name) != value
    )


def has_bfloat16(device: str) -> bool:
    """Tell whether a device has bfloat16: training is twice (AVX-512) to thrice (AMX) as fast."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    can = torch.cpu.get_capabilities()
    return bool(can.get("amx_bf16") or can.get("avx512_bf16"))


def _fingerprint(data: Images) -> str:
    """Return what only these images and targets have."""
    digest = hashlib.sha256(data.targets.numpy().tobytes())
    digest.update(data.pixels.numpy().tobytes())
    return digest.hexdigest()
