"""One training run, step by step; it can stop after any step and go on later.

All randomness of a step is drawn from the seed and the step's number, so a run that was
interrupted and resumed gives, on a CPU, the same weights as one that was not.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot
from torch.optim.swa_utils import get_ema_multi_avg_fn

from model.image import normalise
from model.net import Net

from .augment import blend, compress, cut, flip, mix, shift
from .graph import WARM_UP, Graph
from .recipe import one_cycle

if TYPE_CHECKING:
    from pathlib import Path

    from .data import Images
    from .recipe import Recipe


class ResumeError(ValueError):
    """A checkpoint belongs to another run."""


class NetError(ValueError):
    """The net is another one than the recipe was made for."""


def new_net(recipe: Recipe, classes: int) -> Net:
    """Return the net that is served, with random weights, drawn by the recipe's seed.

    Raises:
        NetError: `model/net.py` holds another net than the project's.
    """
    if "dropout" not in inspect.signature(Net).parameters:
        raise NetError(
            "model/net.py holds a net that this recipe is not made for: train it by code of "
            "your own, and go on as docs/own-net.md tells"
        )
    torch.manual_seed(recipe.seed)
    return Net(classes, recipe.dropout)


class Trainer:
    """The state of a run and what one step does to it.

    Args:
        recipe: how to train.
        data: the training images.
        classes: how many of them there are.
        net: what is trained: normalised images in, float N×3×H×W; logits out, N×classes.
        device: where to train.
        teacher: what it learns from, if anything, of the same classes.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Images,
        classes: int,
        net: nn.Module,
        device: str,
        teacher: nn.Module | None = None,
    ) -> None:
        self.recipe, self.classes, self.device = recipe, classes, device
        self.pixels, self.targets = data.pixels.to(device), data.targets.to(device)
        self.mirrored = torch.rand(len(data.targets), generator=self._generator(-1)) < 0.5
        self.images = _fingerprint(data)
        self.steps_per_epoch = len(data.targets) // recipe.batch
        self.steps = recipe.epochs * self.steps_per_epoch
        self.step = 0
        # Of each step; on the device, for to read what a GPU has found is to wait for it.
        self.log = torch.zeros(self.steps, 2, device=device)
        self.order: tuple[int, torch.Tensor] = (-1, torch.empty(0))  # of an epoch
        self.net = _placed(net, device)
        self.teacher = None if teacher is None else _placed(teacher, device).eval()
        self.average = copy.deepcopy(self.net)  # over the steps, the norms' statistics too
        self.keep = get_ema_multi_avg_fn(recipe.averaging)
        weights = {"params": [p for p in net.parameters() if p.ndim > 1]}
        others = {"params": [p for p in net.parameters() if p.ndim == 1]}  # norms and biases
        groups: list[dict[str, Any]] = [{**weights, "weight_decay": recipe.decay}, others]
        on_cuda = device == "cuda"
        self.optimizer = torch.optim.SGD(
            groups,
            lr=torch.tensor(recipe.peak_rate, device=device) if on_cuda else recipe.peak_rate,
            momentum=recipe.momentum,
            nesterov=True,
            fused=on_cuda,
        )
        self.learn = Graph(self._learn) if on_cuda else self._learn
        self.slow = WARM_UP + 1 if on_cuda else 1  # steps that take longer than the others

    def advance(self) -> None:
        """Take one step, and note its loss and accuracy in the log."""
        for group in self.optimizer.param_groups:
            if self.device == "cuda":  # where a graph reads it
                group["lr"].fill_(self.rate(self.step))
            else:
                group["lr"] = self.rate(self.step)
        self.net.train()
        self.log[self.step] = self.learn(*self._batch())
        self.step += 1

    def _learn(
        self, images: torch.Tensor, shown: torch.Tensor, wanted: torch.Tensor
    ) -> torch.Tensor:
        """Learn from a batch (see `_batch`); return the loss and the accuracy."""
        self.optimizer.zero_grad(set_to_none=True)
        has = has_bfloat16(self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=has, cache_enabled=False):
            if self.teacher is not None:
                with torch.no_grad():
                    answers = self.teacher(normalise(images)).float().softmax(1)
                wanted = torch.lerp(wanted, answers, self.recipe.imitation)
            logits = self.net(normalise(shown)).float()
            loss = cross_entropy(logits, wanted)
        loss.backward()
        self.optimizer.step()
        self._average()
        right = (logits.argmax(1) == wanted.argmax(1)).float().mean()
        return torch.stack([loss.detach(), right])

    @torch.no_grad()
    def _average(self) -> None:
        """Average the weights with those before; `AveragedModel` can't be in a graph."""
        averages, weights = (
            [tensor for tensor in net.state_dict().values() if tensor.is_floating_point()]
            for net in (self.average, self.net)
        )
        if self.step:
            self.keep(averages, weights, self.step)
        else:
            torch._foreach_copy_(averages, weights)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step in [0, steps)."""
        return one_cycle(self.recipe.peak_rate, self.recipe.warmup, step, self.steps)

    def weights(self, temperature: float = 1.0) -> dict[str, torch.Tensor]:
        """Return the averaged state dict of a `Net`, on the CPU.

        Args:
            temperature: what its logits are divided by.
        """
        state = dict(self.average.state_dict())
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
        self.step, self.log = state["step"], state["log"]
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        # Its numbers are this run's: on another device they are of another kind.
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({**state["optimizer"], "param_groups": groups})

    def _state(self) -> dict[str, Any]:
        return {
            "recipe": asdict(self.recipe),
            "images": self.images,
            "step": self.step,
            "log": self.log,
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return this step's images, varied, and the same as they are shown: as JPEGs, some.

        Both are uint8 N×H×W×3. The third is what is wanted of them: float N×classes.
        """
        recipe, (chosen, mirror, generator) = self.recipe, self._draw()
        images = self.pixels[chosen].float().permute(0, 3, 1, 2)
        images = shift(flip(images, mirror), generator)
        wanted = self._labelled(self.targets[chosen])
        if recipe.mixing:
            weights = blend(recipe.mixing, len(chosen), generator).to(self.device)
            images, wanted = mix(images, weights), mix(wanted, weights)
        if recipe.cutout:
            images = cut(images, recipe.cutout, generator)
        images = images.round()
        shown = compress(images, recipe.jpeg, generator) if recipe.jpeg else images
        varied, seen = (pixels.byte().permute(0, 2, 3, 1) for pixels in (images, shown))
        return varied, seen, wanted

    def _labelled(self, targets: torch.Tensor) -> torch.Tensor:
        """Return what is wanted of images of these classes, if nothing else is known of them."""
        smoothing = self.recipe.smoothing
        return one_hot(targets, self.classes) * (1 - smoothing) + smoothing / self.classes

    def _draw(self) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
        """Draw which images come in this step, which of them mirrored, and what else is drawn by.

        Each is mirrored in every second epoch.
        """
        epoch, place = divmod(self.step, self.steps_per_epoch)
        if self.order[0] != epoch:
            drawn = torch.randperm(len(self.targets), generator=self._generator(-2 - epoch))
            self.order = (epoch, drawn)
        chosen = self.order[1][place * self.recipe.batch :][: self.recipe.batch]
        generator = self._generator(self.step)
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # for dropout
        mirror = self.mirrored[chosen] ^ bool(epoch % 2)
        return chosen.to(self.device), mirror.to(self.device), generator

    def _generator(self, stream: int) -> torch.Generator:
        """Return the random numbers of one purpose: the seed's stream of that number."""
        return torch.Generator().manual_seed((self.recipe.seed << 32) + stream + 2**31)


def _placed(net: nn.Module, device: str) -> nn.Module:
    """Return a net on a device, in the layout in which convolutions are fast."""
    return net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _unlike(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    """Tell in which numbers a recipe is another than mine."""

    def told(value: Any) -> str:
        return f"one of {value['epochs']} epochs" if isinstance(value, dict) else str(value)

    return ", ".join(
        f"{name} {told(theirs.get(name))}, not {told(value)}"
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
