"""Wide residual networks."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn


class WideResNet(nn.Module):
    """The pre-activation wide residual network used by JEM: convolutions have biases, normalization is optional.

    A stem with 16 channels, three stages with strides 1, 2 and 2, global average pooling and a linear head. The
    defaults give WRN-28-10 with 36.5 million parameters; ``depth=10, widths=(64, 128, 256)`` gives WRN-10-4. Because of
    the global pooling, images can have any size.

    References:
        Zagoruyko & Komodakis, Wide residual networks, 2016. https://arxiv.org/abs/1605.07146
        Grathwohl et al. 2020, without normalization. https://arxiv.org/abs/1912.03263

    Arguments:
        in_channels: Channels of the images.
        num_classes: K.
        depth: Number of layers, 6n + 4 for n residual blocks per stage.
        widths: Channels of the three stages.
        norm: "none", or "batch" for batch normalization as in JEM++, with PyTorch's momentum of 0.1 (JEM uses 0.9).
            Energies are computed in eval mode in both cases.
        activation: "leaky_relu" with slope 0.2, or "silu", which is smooth.
        dropout: Dropout probability between the two convolutions of a block.

    Raises:
        ValueError: ``depth`` is not 6n + 4, ``widths`` does not have three entries, or ``norm`` or ``activation`` is
            unknown.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        depth: int = 28,
        widths: Sequence[int] = (160, 320, 640),
        norm: Literal["none", "batch"] = "none",
        activation: Literal["leaky_relu", "silu"] = "leaky_relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"'depth' should be 6n + 4 for n = 1, 2, ..., got {depth}. Use 10, 16, 22 or 28.")
        if len(widths) != 3:
            raise ValueError(f"'widths' should hold the channels of three stages, got {tuple(widths)}.")
        if norm not in ("none", "batch"):
            raise ValueError(f"'norm' should be 'none' or 'batch', got {norm!r}.")
        if activation not in ("leaky_relu", "silu"):
            raise ValueError(f"'activation' should be 'leaky_relu' or 'silu', got {activation!r}.")
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.depth = depth
        self.widths = tuple(widths)
        self.norm = norm
        self.activation = activation
        self.dropout = dropout
        self.layers = nn.Sequential(nn.Conv2d(in_channels, 16, 3, padding=1))
        for (n, m), stride in zip(pairwise((16, *self.widths)), (1, 2, 2), strict=True):
            for block in range((depth - 4) // 6):
                first = block == 0
                self.layers.append(_Residual(n if first else m, m, stride if first else 1, norm, activation, dropout))
        self.layers.append(_preactivation(self.widths[-1], norm, activation))
        self.head = nn.Linear(self.widths[-1], num_classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(x).mean((2, 3)))
        return logits


class _Residual(nn.Module):
    """x + conv(act(conv(act(x)))), the second convolution strided. A 1x1 convolution adapts x if the shape changes."""

    def __init__(self, n: int, m: int, stride: int, norm: str, activation: str, dropout: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _preactivation(n, norm, activation),
            nn.Conv2d(n, m, 3, padding=1),
            *([nn.Dropout(dropout)] if dropout else []),
            _preactivation(m, norm, activation),
            nn.Conv2d(m, m, 3, stride=stride, padding=1),
        )
        same = n == m and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(n, m, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x) + self.shortcut(x)
        return out


def _preactivation(channels: int, norm: str, activation: str) -> nn.Module:
    act = nn.SiLU() if activation == "silu" else nn.LeakyReLU(0.2)
    return nn.Sequential(nn.BatchNorm2d(channels), act) if norm == "batch" else act
