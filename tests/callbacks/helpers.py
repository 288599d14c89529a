"""Small models and densities that the tests of callbacks share."""

import math

import torch
from torch import Tensor, nn

from ebm_lightning import JEM, Box, Density
from ebm_lightning.networks import MLP, ConvNet
from tests.helpers import jem

IMAGES = Box(-1, 1, (1, 8, 8))


def image_jem(**arguments) -> JEM:
    torch.manual_seed(0)
    return jem(ConvNet((1, 8, 8), 3, 4), support=IMAGES, **arguments)


class FirstPixels(nn.Module):
    """Features that are known exactly: the first two pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2]


class Flat(nn.Module):
    """An MLP on points of any shape."""

    def __init__(self, shape: tuple[int, ...], classes: int = 3) -> None:
        super().__init__()
        self.layers = MLP(math.prod(shape), classes, (8,))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))


class Grey(Density):
    """All points are the same. Records the labels of every call."""

    def __init__(self) -> None:
        self.labels: list[Tensor | None] = []

    def log_prob(self, x):
        raise NotImplementedError

    def sample(self, n, *, labels=None, generator=None, device=None):
        self.labels.append(labels)
        return torch.full((n, 1, 8, 8), 0.25)
