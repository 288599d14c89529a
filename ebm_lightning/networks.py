"""Small reference classifiers, without normalisation layers: the energy of one x does not depend on its batch."""

from collections.abc import Sequence
from itertools import pairwise

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
