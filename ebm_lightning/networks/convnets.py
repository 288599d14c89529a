"""Small convolutional networks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ConvNet(nn.Module):
    """Three convolutions and one hidden layer with SiLU, for images of 8 to 32 pixels.

    The second convolution halves the resolution. Features are flattened, not pooled, so that the energy depends on
    their position in the image.

    Arguments:
        shape: Shape of one image (C, H, W). H and W are even.
        num_classes: K.
        width: Channels of the first layer. The next layers have 2 and 4 times as many.

    Raises:
        ValueError: H or W is odd.
    """

    def __init__(self, shape: Sequence[int], num_classes: int, width: int = 16) -> None:
        super().__init__()
        channels, height, breadth = shape
        if height % 2 or breadth % 2:
            raise ValueError(f"'shape' should have an even height and width, got {tuple(shape)}.")
        self.shape = tuple(shape)
        self.num_classes = num_classes
        self.width = width
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(width * height * breadth, 8 * width),
            nn.SiLU(),
            nn.Linear(8 * width, num_classes),
        )
        self.layers.to(memory_format=torch.channels_last)  # 20 to 33% faster on CPU

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


class StridedConvNet(nn.Module):
    """Four convolutions and one hidden layer with SiLU.

    The first and third convolution halve the resolution. No layer works at full resolution, so the network is deeper
    than :class:`ConvNet` at 80% of the cost. Features are flattened, not pooled, so that the energy depends on their
    position in the image.

    Arguments:
        shape: Shape of one image (C, H, W). H and W are multiples of 4.
        num_classes: K.
        width: The layers have 2, 2, 4 and 4 times as many channels.
        dropout: Dropout probability before each of the two linear layers.

    Raises:
        ValueError: H or W is not a multiple of 4.
    """

    def __init__(self, shape: Sequence[int], num_classes: int, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        channels, height, breadth = shape
        if height % 4 or breadth % 4:
            raise ValueError(f"'shape' should have a height and width divisible by 4, got {tuple(shape)}. Pad images.")
        self.shape = tuple(shape)
        self.num_classes = num_classes
        self.width = width
        self.dropout = dropout
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 2 * width, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(4 * width, 4 * width, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            *([nn.Dropout(dropout)] if dropout else []),
            nn.Linear(width * height * breadth // 4, 8 * width),
            nn.SiLU(),
            *([nn.Dropout(dropout)] if dropout else []),
            nn.Linear(8 * width, num_classes),
        )
        self.layers.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


class ThresholdConvNet(nn.Module):
    r"""One strided convolution of soft thresholds of each pixel, and one hidden layer, for densities of small images.

    .. math:: h_{j} = \tanh(a_j (u - b_j)), \qquad j = 1, \dots, J

    Each pixel has its own thresholds b and slopes a, which are learned. A convolution then reads whether a pixel is
    above a level, and not only its value: a density has to tell gray levels apart that a classifier need not. The
    thresholds begin at the quantiles of a standard normal distribution, so the network is for normal scores
    (:class:`~ebm_lightning.NormalScores`). The last layer begins at 0: the model begins as its reference density.

    Arguments:
        shape: Shape of one image (C, H, W). H and W are even.
        num_classes: K.
        width: Channels of the convolution.
        hidden: Width of the hidden layer.
        thresholds: J, for each pixel.
        slope: First value of a.

    Raises:
        ValueError: H or W is odd.
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int,
        width: int = 64,
        hidden: int = 128,
        thresholds: int = 6,
        slope: float = 3.0,
    ) -> None:
        super().__init__()
        channels, height, breadth = shape
        if height % 2 or breadth % 2:
            raise ValueError(f"'shape' should have an even height and width, got {tuple(shape)}.")
        self.shape = tuple(shape)
        self.num_classes = num_classes
        self.width = width
        self.hidden = hidden
        self.thresholds = thresholds
        self.slope = slope
        quantiles = torch.special.ndtri((torch.arange(thresholds) + 0.5) / thresholds)
        self.threshold = nn.Parameter(quantiles.view(-1, 1, 1, 1).repeat(1, *self.shape))
        self.slopes = nn.Parameter(torch.full((thresholds, *self.shape), slope))
        self.layers = nn.Sequential(
            nn.Conv2d((thresholds + 1) * channels, width, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(width * height * breadth // 4, hidden),
            nn.SiLU(),
        )
        self.head = nn.Linear(hidden, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, u: Tensor) -> Tensor:
        above = torch.tanh((u[:, None] - self.threshold) * self.slopes).flatten(1, 2)
        logits: Tensor = self.head(self.layers(torch.cat([u, above], 1)))
        return logits
