"""A head for densities of feature vectors: class probabilities and log density have separate weights."""

from typing import cast

import torch
from torch import Tensor, nn


class DensityHead(nn.Module):
    r"""Logits whose softmax is one small network, and whose logsumexp is another.

    .. math:: f(u)[y] = \log \text{softmax}(c(u))[y] + g(u), \qquad \log \sum_y e^{f(u)[y]} = g(u)

    As E(x) = -g(u) - log q(u), the second network is what a joint energy model adds to its reference density q, and the
    first is p(y|x). Neither term of the loss has to give way to the other, and any weights of the terms will do.

    g sees soft thresholds of each component, tanh(a (u - b)), whose a and b are learned and begin at quantiles of the
    standard normal distribution. So it can correct the histogram of a component; and it is bounded, so that the model
    has the tails of its reference density and log Z exists. It begins at 0: the model begins as q.

    Arguments:
        in_features: D, the number of components of u.
        num_classes: K.
        hidden: Width of the hidden layer of both networks.
        thresholds: Soft thresholds of each component.
        slope: First value of a.
    """

    def __init__(
        self, in_features: int, num_classes: int, hidden: int = 64, thresholds: int = 4, slope: float = 1.5
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.num_classes = num_classes
        self.hidden = hidden
        self.thresholds = thresholds
        self.slope = slope
        self.conditional = nn.Sequential(nn.Linear(in_features, hidden), nn.SiLU(), nn.Linear(hidden, num_classes))
        quantiles = torch.special.ndtri((torch.arange(thresholds) + 0.5) / thresholds)
        self.threshold = nn.Parameter(quantiles[:, None].repeat(1, in_features))
        self.slopes = nn.Parameter(torch.full((thresholds, in_features), slope))
        size = in_features * thresholds
        self.pairs = nn.Sequential(nn.Linear(size, 2 * hidden), nn.SiLU(), nn.Linear(2 * hidden, 1))
        self.single = nn.Linear(size, 1)
        for layer in (cast(nn.Linear, self.pairs[-1]), self.single):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, u: Tensor) -> Tensor:
        return self.conditional(u).log_softmax(1) + self.log_ratio(u)

    def log_ratio(self, u: Tensor) -> Tensor:
        """g(u), shape (N, 1): the log density relative to the reference density, up to log Z."""
        above = torch.tanh((u[:, None] - self.threshold) * self.slopes).flatten(1)
        return self.pairs(above) + self.single(above)

    def calibrate(self, u: Tensor, y: Tensor) -> float:
        """Divide the logits of the class probabilities by the temperature that suits held-out data best; g stays.

        Arguments:
            u: Held-out data, shape (N, D).
            y: Their labels, shape (N,).

        Returns:
            The temperature.

        References:
            Guo et al., On calibration of modern neural networks, 2017. https://arxiv.org/abs/1706.04599
        """
        last = cast(nn.Linear, self.conditional[-1])
        with torch.no_grad():
            temperature = best_temperature(self.conditional(u), y)
            last.weight.div_(temperature)
            last.bias.div_(temperature)
        return temperature


def best_temperature(logits: Tensor, y: Tensor) -> float:
    """The temperature in [0.1, 10] by which to divide logits (N, K) for the smallest cross-entropy with labels (N,).

    The cross-entropy is convex in 1 / temperature, so a search by intervals finds its minimum.
    """
    low, high = 0.1, 10.0

    def loss(inverse: float) -> float:
        return float(nn.functional.cross_entropy(logits.detach().double() * inverse, y))

    for _ in range(40):
        third = (high - low) / 3
        if loss(low + third) < loss(high - third):
            high -= third
        else:
            low += third
    return 2 / (low + high)
