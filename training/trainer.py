"""One training run, step by step; it can stop after any step and go on later.

All randomness of a step is drawn from the seed and the step's number, so a run that was
interrupted and resumed gives the same weights as one that was not.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from model.image import normalise
from model.net import Net

from .augment import compress, cut, flip, shift

if TYPE_CHECKING:
    from pathlib import Path

    from .data import Images
    from .recipe import Recipe


class ResumeError(ValueError):
    """A checkpoint belongs to another run."""


class Trainer:
    """The state of a run and what one step does to it.

    Args:
        recipe: how to train.
        data: the training images.
        classes: how many outputs the net has.
        device: where to train.
    """

    def __init__(self, recipe: Recipe, data: Images, classes: int, device: str) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device = recipe, device
        self.pixels, self.targets = data.pixels.to(device), data.targets.to(device)
        once = self._generator(-1)
        self.mirrored = torch.rand(len(data.targets), generator=once) < 0.5
        self.jpegs = compress(data.pixels, once).to(device)
        net = Net(classes, recipe.dropout).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net: Net = net
        keep = get_ema_multi_avg_fn(recipe.averaging)
        self.average = AveragedModel(self.net, multi_avg_fn=keep, use_buffers=True)
        groups: list[dict[str, Any]] = [
            {
                "params": [p for p in self.net.parameters() if p.ndim > 1],
                "weight_decay": recipe.decay,
            },
            {"params": [p for p in self.net.parameters() if p.ndim == 1]},  # norms and biases
        ]
        self.optimizer = torch.optim.SGD(
            groups,
            lr=recipe.peak_rate,
            momentum=recipe.momentum,
            nesterov=True,
        )
        self.images = _fingerprint(data)
        self.log: list[tuple[float, float]] = []  # loss and accuracy in [0, 1] of each step
        self.steps_per_epoch = len(data.targets) // recipe.batch
        self.steps = recipe.epochs * self.steps_per_epoch

    @property
    def step(self) -> int:
        """How many steps were taken."""
        return len(self.log)

    def advance(self) -> tuple[float, float]:
        """Take one step; return its loss and its accuracy in [0, 1]."""
        inputs, targets = self._batch()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step, self.steps)
        self.net.train()
        with torch.autocast(self.device, torch.bfloat16, enabled=has_bfloat16(self.device)):
            logits = self.net(inputs)
        loss = cross_entropy(logits.float(), targets, label_smoothing=self.recipe.smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.average.update_parameters(self.net)
        right = (logits.argmax(1) == targets).float().mean()
        self.log.append((loss.item(), right.item()))
        return self.log[-1]

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
        for key, mine in (("recipe", asdict(self.recipe)), ("images", self.images)):
            if state.get(key) != mine:
                raise ResumeError(f"{path} is of a run with other {key}: {remedy}")
        self.log = state["log"]
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _state(self) -> dict[str, Any]:
        return {
            "recipe": asdict(self.recipe),
            "images": self.images,
            "log": self.log,
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw and vary this step's images; each is mirrored in every second epoch."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        order = torch.randperm(len(self.targets), generator=self._generator(-2 - epoch))
        chosen = order[place * self.recipe.batch :][: self.recipe.batch]
        generator = self._generator(self.step)
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # for dropout
        as_jpeg = torch.rand(len(chosen), generator=generator) < self.recipe.jpeg
        mirror = self.mirrored[chosen] ^ bool(epoch % 2)
        chosen, as_jpeg, mirror = (t.to(self.device) for t in (chosen, as_jpeg, mirror))
        pixels = torch.where(as_jpeg.view(-1, 1, 1, 1), self.jpegs[chosen], self.pixels[chosen])
        images = shift(flip(normalise(pixels), mirror), generator)
        if self.recipe.cutout:
            images = cut(images, self.recipe.cutout, generator)
        return images, self.targets[chosen]

    def _generator(self, stream: int) -> torch.Generator:
        """Return the random numbers of one purpose: the seed's stream of that number."""
        return torch.Generator().manual_seed((self.recipe.seed << 32) + stream + 2**31)


def has_bfloat16(device: str) -> bool:
    """Tell whether a device has units for bfloat16; with them training is some 3 times faster."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def _fingerprint(data: Images) -> str:
    """Return what only these images and targets have."""
    digest = hashlib.sha256(data.targets.numpy().tobytes())
    digest.update(data.pixels.numpy().tobytes())
    return digest.hexdigest()
