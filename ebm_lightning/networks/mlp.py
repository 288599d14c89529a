"""Fully connected networks."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Fully connected layers with SiLU, for vectors or flattened images.

    Arguments:
        in_features: D, the number of components of x.
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
