"""The teacher: a larger net, which the released one learns from and which nobody serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torchvision.models import resnet18

if TYPE_CHECKING:
    from .recipe import Recipe


def new_teacher(recipe: Recipe, classes: int) -> nn.Module:
    """Return a ResNet-18 for small images, with random weights, drawn by the recipe's seed.

    As in He et al., 2015, but the first layers don't make the images smaller, as is usual for
    images of 32×32 pixels: 11 million parameters, 557 million multiply-adds an image. It maps
    normalised images, float N×3×H×W, to logits, float N×classes.
    """
    torch.manual_seed(recipe.seed)
    net: nn.Module = resnet18(num_classes=classes)
    net.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net
