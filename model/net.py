"""The network: a small VGG-like convolutional net for 32×32 colour images."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

DROPOUT = (0.2, 0.3, 0.4, 0.5)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)


class Net(nn.Module):
    """CIFAR-10 classifier of 2.2 million parameters and 154 million multiply-adds an image.

    Each convolution is followed by ReLU and then batch normalisation, in that order. The
    parameter names are a public contract: weights trained elsewhere for this net load here.

    Attributes:
        CHANNELS: which layer makes channels, which norm follows it, and which layer, and no other,
            reads what comes of it. `training/slim.py` leaves out what can be spared of them, and
            `training/int8.py` makes their ranges alike; a net without it does without.

    Args:
        classes: number of outputs.
        dropout: rates of dropout1 … dropout4, each in [0, 1); they matter in training only.
    """

    CHANNELS: ClassVar = (
        ("conv1", "norm1", "conv2"),
        ("conv2", "norm2", "conv3"),
        ("conv3", "norm3", "conv4"),
        ("conv4", "norm4", "conv5"),
        ("conv5", "norm5", "conv6"),
        ("conv6", "norm6", "fc1"),
        ("fc1", "norm7", "fc2"),
    )

    def __init__(self, classes: int = 10, dropout: Sequence[float] = DROPOUT) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(3, 64), nn.BatchNorm2d(64)
        self.conv2, self.norm2 = _conv(64, 64), nn.BatchNorm2d(64)
        self.pool1, self.dropout1 = nn.MaxPool2d(2), nn.Dropout2d(dropout[0])

        self.conv3, self.norm3 = _conv(64, 128), nn.BatchNorm2d(128)
        self.conv4, self.norm4 = _conv(128, 128), nn.BatchNorm2d(128)
        self.pool2, self.dropout2 = nn.MaxPool2d(2), nn.Dropout2d(dropout[1])

        self.conv5, self.norm5 = _conv(128, 256), nn.BatchNorm2d(256)
        self.conv6, self.norm6 = _conv(256, 256), nn.BatchNorm2d(256)
        self.pool3, self.dropout3 = nn.MaxPool2d(2), nn.Dropout2d(dropout[2])

        self.fc1, self.norm7 = nn.Linear(256 * 4 * 4, 256), nn.BatchNorm1d(256)
        self.dropout4 = nn.Dropout(dropout[3])
        self.fc2 = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images, float N×3×32×32, to logits, float N×classes."""
        x = self.norm1(self.conv1(x).relu())
        x = self.norm2(self.conv2(x).relu())
        x = self.dropout1(self.pool1(x))

        x = self.norm3(self.conv3(x).relu())
        x = self.norm4(self.conv4(x).relu())
        x = self.dropout2(self.pool2(x))

        x = self.norm5(self.conv5(x).relu())
        x = self.norm6(self.conv6(x).relu())
        x = self.dropout3(self.pool3(x))

        x = self.norm7(self.fc1(x.flatten(1)).relu())
        logits: Tensor = self.fc2(self.dropout4(x))
        return logits
