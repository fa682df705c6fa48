"""Channels of a net that others can stand in for, left out, so that there is less to multiply."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from model.image import normalise

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from model.net import Net

STEP = 16
"""What stays is a multiple of it, as many sums of 32 bits as a vector of AVX-512 holds."""
MOST_MISSED = 1e-3
"""What may be missed of all that a layer reads, [0, 1]: far less than 8 bits cost."""
ENOUGH = 20
"""Pixels for each channel, without which channels seem to tell of each other by chance."""
RIDGE = 1e-9
"""Added to each channel's mean square, which is 1, or 0 of one that is always 0."""
LEAST = 1e-12
"""A channel whose values are smaller is always 0."""


@torch.no_grad()
def leave_out(net: Net, batches: Iterable[Tensor]) -> None:
    """Take channels from a net that then answers almost the same.

    After training, some channels are the same for every image, and some are almost sums of others.
    Such a channel is left out, and the layer that read it reads the others in its place.

    Args:
        net: in evaluation mode, on the CPU; it is changed.
        batches: images, uint8 N×32×32×3, by which the channels are compared.
    """
    moments = _moments(net, batches)
    for maker, norm, reader in net.CHANNELS:
        if norm not in moments:
            continue
        layer, after, reads = (getattr(net, name) for name in (maker, norm, reader))
        moment, weight = moments[norm], reads.weight
        by_channel = weight.double().reshape(len(weight), len(moment), -1)
        kept, by_channel = thin(moment, by_channel)
        # Only tensors change: what layers say of their numbers of channels is for people.
        weight.data = by_channel.reshape(len(weight), -1, *weight.shape[2:]).float()
        for part in (layer.weight, layer.bias, *after.parameters()):
            if part is not None:
                part.data = part[kept]
        after.running_mean, after.running_var = after.running_mean[kept], after.running_var[kept]


def thin(moment: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Leave out the channels that a layer can best do without.

    The cheapest goes first: that of which the least is left when the others have told of it what
    they can, times the square of the weights that read it. Its weights move to the others, and the
    next one is sought, as in Optimal Brain Surgeon (Hassibi and Stork, 1993). No constant helps the
    others: what pads a picture is 0 in each channel, where a constant would not be.

    Args:
        moment: the mean of the products of each two channels, float64 C×C.
        weight: of the layer that reads them, float64 outputs×C×positions.

    Returns:
        The indices of the channels that stay, int64, as many as STEP divides or all; and the
        weight for them.
    """
    size = moment.diag().sqrt().clamp_min(LEAST)  # as the unit of each channel: all count alike
    moment = moment / torch.outer(size, size) + RIDGE * torch.eye(len(size))
    weight = weight * size.view(1, -1, 1)
    left = MOST_MISSED * weight.square().sum()
    kept = torch.arange(len(size))
    best = kept, weight
    while len(kept) > STEP:
        inverse = torch.linalg.inv(moment)  # anew: updated, it would soon be all rounding
        costs = weight.square().sum((0, 2)) / inverse.diag()
        gone = int(costs.argmin())
        left = left - costs[gone]
        if not left >= 0:  # nor if it is no number
            break
        others = torch.arange(len(kept)) != gone
        proportions = -inverse[gone] / inverse[gone, gone]  # of the others, in its place
        weight = (weight + proportions.view(1, -1, 1) * weight[:, gone : gone + 1])[:, others]
        moment, kept = moment[others][:, others], kept[others]
        if len(kept) % STEP == 0:
            best = kept, weight
    kept, weight = best
    return kept, weight / size[kept].view(1, -1, 1)


def _moments(net: Net, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return, by the name of a norm, the mean products of the channels that the next layer reads.

    Of a layer that reads too few pixels there are none. A linear one reads one of each image, or
    as many as were flattened.
    """
    sums: dict[str, Tensor] = {}
    pixels: dict[str, int] = {}

    def note(norm: str, width: int, _: object, read: tuple[Tensor]) -> None:
        found = read[0].reshape(len(read[0]), width, -1).transpose(0, 1).flatten(1).double()
        sums[norm] = sums.get(norm, 0) + found @ found.T
        pixels[norm] = pixels.get(norm, 0) + found.shape[1]

    hooks = [
        getattr(net, reader).register_forward_pre_hook(
            partial(note, norm, len(getattr(net, norm).weight))
        )
        for _, norm, reader in net.CHANNELS
    ]
    show(net, batches, hooks)
    return {
        norm: products / pixels[norm]
        for norm, products in sums.items()
        if pixels[norm] >= ENOUGH * len(products)
    }


def show(net: Net, batches: Iterable[Tensor], hooks: Iterable[RemovableHandle]) -> None:
    """Show images, uint8 N×32×32×3, to a net, and remove the hooks that have watched it."""
    for batch in batches:
        net(normalise(batch))
    for hook in hooks:
        hook.remove()
