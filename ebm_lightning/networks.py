"""Reference classifiers, by default without normalisation layers: the energy of one x does not depend on its batch."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class MLP(nn.Module):
    """Fully connected layers with SiLU between them, on vectors or flattened images.

    Arguments:
        in_features: D, the product of the shape of x.
        num_classes: K.
        hidden: Widths of the hidden layers.
    """

    def __init__(self, in_features: int, num_classes: int, hidden: Sequence[int] = (128, 128)) -> None:
        super().__init__()
        self.in_features = in_features
        self.num_classes = num_classes
        self.hidden = tuple(hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for n, m in pairwise((in_features, *self.hidden)):
            layers += [nn.Linear(n, m), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear((in_features, *self.hidden)[-1], num_classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


class ConvNet(nn.Module):
    """Three convolutions with SiLU, the second halving the image, then one hidden layer: for images of 8 to 32 pixels.

    The features are flattened, not pooled, so that the energy knows where in the image it is.

    Arguments:
        shape: Shape of one image (C, H, W), H and W even.
        num_classes: K.
        width: Channels of the first layer; the next have 2 and 4 times as many.

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
        self.layers.to(memory_format=torch.channels_last)  # a fifth to a third faster on CPU

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


class StridedConvNet(nn.Module):
    """Four convolutions with SiLU, the first and third halving the image, then one hidden layer.

    Nothing runs at the image's full size: deeper than :class:`ConvNet` at four fifths of its cost. The features are
    flattened, not pooled, so that the energy knows where in the image it is.

    Arguments:
        shape: Shape of one image (C, H, W), H and W multiples of 4.
        num_classes: K.
        width: The layers have 2, 2, 4 and 4 times as many channels.
        dropout: Probability, before each of the two linear layers.

    Raises:
        ValueError: H or W is no multiple of 4.
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


class WideResNet(nn.Module):
    """The pre-activation wide residual network of the JEM lineage: biases on, no normalisation unless asked for.

    A stem of 16 channels, three stages with strides 1, 2, 2, global average pooling, a linear head. The defaults are
    WRN-28-10, 36.5 million weights; ``depth=10, widths=(64, 128, 256)`` is WRN-10-4. Global pooling takes any image
    size, and one image at a time.

    References:
        Zagoruyko & Komodakis, Wide residual networks, 2016. https://arxiv.org/abs/1605.07146
        Grathwohl et al. 2020, who leave the normalisation out. https://arxiv.org/abs/1912.03263

    Arguments:
        in_channels: Channels of the images.
        num_classes: K.
        depth: Number of layers, 6n + 4 for n residual blocks per stage.
        widths: Channels of the three stages.
        norm: "none", or "batch" for batch normalisation (momentum 0.1, PyTorch's, where JEM has 0.9) as in JEM++.
            Energies are those of eval mode either way.
        activation: "leaky_relu" with slope 0.2, or the smooth "silu".
        dropout: Probability, between the two convolutions of a block.

    Raises:
        ValueError: ``depth`` is not 6n + 4, there are not three ``widths``, or another ``norm`` or ``activation``.
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
    """x + conv(act(conv(act(x)))), the second convolution strided; a 1x1 convolution where the shape changes."""

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


class SpectrallyNormalised(nn.Module):
    """A network whose convolutions and linear layers have largest singular value 1, so that energies cannot be steep.

    The power iteration behind it runs in training mode alone, so chains, which see eval mode, do not move it. A
    convolution is normalised as the matrix of its kernel, as usual, which is not quite its own norm.

    References:
        Miyato et al., Spectral normalization for generative adversarial networks, 2018.
        https://arxiv.org/abs/1802.05957

    Arguments:
        network: Maps (N, *shape) to logits (N, K); its layers are changed in place.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        for layer in list(network.modules()):
            if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                spectral_norm(layer)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits
