"""Channels of a net that others can stand in for, left out, so that there is less to multiply."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from model.image import normalise

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from model.net import Net

STEP = 16
"""As many channels of float32 as a vector of AVX-512 holds: fewer than a multiple save nothing."""
MOST_LOST = 1e-3
"""The share of what a layer reads, [0, 1], that may be lost: far less than 8 bits cost."""
ENOUGH = 20
"""Pixels seen for each channel: of fewer, channels seem to tell of each other by chance."""
RIDGE = 1e-9
"""Times the mean variance, added to each channel's: one that never changes has none."""


class Reading(NamedTuple):
    """What a layer reads.

    Attributes:
        mean: of each of C channels, float64.
        covariance: float64 C×C.
        weight: of the layer, float64 outputs×C×positions.
        bias: of the layer, float64 outputs.
    """

    mean: Tensor
    covariance: Tensor
    weight: Tensor
    bias: Tensor


@torch.no_grad()
def slimmed(net: Net, batches: Sequence[Tensor]) -> Net:
    """Return a net of fewer channels that answers almost the same.

    After training, some channels are 0 for every image, and some are almost sums of others. Such a
    channel is left out, and whoever read it reads the others in its place. A net that does not say
    which layers these are, in CHANNELS, comes back as it is.

    Args:
        net: in evaluation mode, on the CPU.
        batches: images, uint8 N×32×32×3, by which the channels are compared.
    """
    channels = getattr(net, "CHANNELS", ())
    if not channels:  # nothing to look for in all these images
        return net
    net = copy.deepcopy(net)
    seen = _seen(net, batches)
    for name, norm, reader in channels:
        pixels, mean, covariance = seen[norm]
        if pixels < ENOUGH * len(mean):
            continue
        layer, after, reads = (getattr(net, part) for part in (name, norm, reader))
        weight = reads.weight.double().reshape(len(reads.weight), len(mean), -1)
        kept, weight, bias = thin(Reading(mean, covariance, weight, reads.bias.double()))
        parts = (after.weight, after.bias, after.running_mean, after.running_var)
        for part in (layer.weight, layer.bias, *parts):
            part.data = part[kept]
        shape = (len(weight), -1, *reads.weight.shape[2:])
        reads.weight.data, reads.bias.data = weight.reshape(shape).float(), bias.float()
    return net


def thin(reading: Reading) -> tuple[Tensor, Tensor, Tensor]:
    """Leave out the channels that a layer can best do without, in numbers that divide by STEP.

    The cheapest goes first: that of which the least is left when the others have told of it what
    they can, times the square of the weights that read it. Its weights move to the others, and the
    next one is sought, as in Optimal Brain Surgeon (Hassibi and Stork, 1993).

    Returns:
        The indices of the channels kept, int64 C', and the layer's weight, float64
        outputs×C'×positions, and bias, float64 outputs.
    """
    mean, covariance, weight, bias = reading
    variance = covariance.diag()
    allowed = MOST_LOST * (variance * weight.square().sum((0, 2))).sum()
    covariance = covariance + RIDGE * variance.mean() * torch.eye(len(mean))
    kept = torch.arange(len(mean))
    best = kept, weight, bias
    while len(kept) > STEP:
        precision = torch.linalg.inv(covariance)  # anew: updated, it would soon be all rounding
        costs = weight.square().sum((0, 2)) / precision.diag()
        gone = int(costs.argmin())
        allowed = allowed - costs[gone]
        if allowed < 0:
            break
        others = torch.arange(len(kept)) != gone
        proportions = -precision[gone] / precision[gone, gone]  # of the others, in its place
        constant = mean[gone] - proportions[others] @ mean[others]
        bias = bias + constant * weight[:, gone].sum(1)
        weight = (weight + proportions.view(1, -1, 1) * weight[:, gone : gone + 1])[:, others]
        mean, covariance, kept = mean[others], covariance[others][:, others], kept[others]
        if len(kept) % STEP == 0:
            best = kept, weight, bias
    return best


def _seen(net: Net, batches: Iterable[Tensor]) -> dict[str, tuple[int, Tensor, Tensor]]:
    """Return, by the name of a norm, what the layer after it reads of these images.

    Returns:
        How many pixels, and their mean and covariance by channel, float64 C and C×C.
    """
    sums: dict[str, tuple[int, Tensor, Tensor]] = {}

    def note(norm: str, width: int, _: object, read: tuple[Tensor]) -> None:
        # What a linear layer reads is flattened: channels, and the pixels of each.
        found = read[0].reshape(len(read[0]), width, -1).transpose(0, 1).flatten(1).double()
        count, total, squares = sums.get(norm, (0, 0, 0))
        sums[norm] = count + found.shape[1], total + found.sum(1), squares + found @ found.T

    hooks = [
        getattr(net, reader).register_forward_pre_hook(
            partial(note, norm, len(getattr(net, norm).weight))
        )
        for _, norm, reader in net.CHANNELS
    ]
    for batch in batches:
        net(normalise(batch))
    for hook in hooks:
        hook.remove()
    means = {norm: total / count for norm, (count, total, _) in sums.items()}
    return {
        norm: (count, means[norm], squares / count - torch.outer(means[norm], means[norm]))
        for norm, (count, _, squares) in sums.items()
    }
