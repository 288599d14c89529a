"""Distributions over the bins of a pixel's gray levels: a histogram, or a mixture of logistic distributions."""

import functools
import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

UNIFORM = 1e-4  # weight of a uniform distribution in a mixture, which bounds the cost of a surprise
MIN_LOG_SCALE = -7.0  # a logistic distribution of a tenth of a gray level


class BinDistribution(Protocol):
    """Distributions over the numbers of bins, one for each pixel, with the shape of pixels (...)."""

    def loss(self, index: Tensor) -> Tensor:
        """Mean of -log p at the bins ``index``, shape (...), in nats. Its gradient trains the distributions."""

    def below_and_at(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Probability of the bins below ``index``, and of that bin, float64, shape (...)."""

    def index_at(self, u: Tensor) -> Tensor:
        """The bin where the cumulative distribution is ``u``, shape (...)."""


@dataclass(frozen=True)
class Histograms:
    """A probability for each bin.

    Arguments:
        logits: Their logits, shape (..., bins).
        last: Number of the last bin in use.
    """

    logits: Tensor
    last: Tensor

    def loss(self, index: Tensor) -> Tensor:
        return F.cross_entropy(self._used.flatten(0, -2), index.flatten())

    def below_and_at(self, index: Tensor) -> tuple[Tensor, Tensor]:
        at = self._p.gather(-1, index[..., None])[..., 0]
        return self._cumulative.gather(-1, index[..., None])[..., 0] - at, at

    def index_at(self, u: Tensor) -> Tensor:
        return torch.searchsorted(self._cumulative, u[..., None])[..., 0].clamp(max=self.last)

    @functools.cached_property
    def _used(self) -> Tensor:
        return self.logits.masked_fill(
            torch.arange(self.logits.shape[-1], device=self.last.device) > self.last, -torch.inf
        )

    @functools.cached_property
    def _p(self) -> Tensor:
        return self._used.softmax(-1).double()

    @functools.cached_property
    def _cumulative(self) -> Tensor:
        return self._p.cumsum(-1)


@dataclass(frozen=True)
class LogisticMixtures:
    r"""Mixtures of logistic distributions of a gray level from -1 to 1, each integrated over bins of equal width.

    .. math:: p(j) = \sum_k \pi_k \left[\sigma\left(\frac{e_{j+1} - \mu_k}{s_k}\right)
        - \sigma\left(\frac{e_j - \mu_k}{s_k}\right)\right]

    The first bin has all that is below, and the last all that is above. A uniform distribution of weight 1e-4 is added.

    References:
        Salimans et al., PixelCNN++, 2017. https://arxiv.org/abs/1701.05517, equation 2.

    Arguments:
        parameters: Logits of the weights, means and logarithms of the scales, shape (..., 3 K).
        bins: Number of bins.
    """

    parameters: Tensor
    bins: int

    def loss(self, index: Tensor) -> Tensor:
        log_p = self._log_at(index, _parts(self.parameters))
        return -log_p.logaddexp(log_p.new_tensor(math.log(UNIFORM / self.bins))).mean()

    def below_and_at(self, index: Tensor) -> tuple[Tensor, Tensor]:
        at = (1 - UNIFORM) * self._log_at(index, self._exact).exp() + UNIFORM / self.bins
        return self._below(index), at

    def index_at(self, u: Tensor) -> Tensor:
        index = torch.zeros(u.shape, dtype=torch.long, device=u.device)
        step = 1 << (self.bins - 1).bit_length()
        while step := step // 2:  # the largest index of which no more than u lies below
            further = (index + step).clamp(max=self.bins - 1)
            index = torch.where(self._below(further) <= u, further, index)
        return index

    def _below(self, index: Tensor) -> Tensor:
        log_weight, mean, scale = self._exact
        below = (log_weight.exp() * torch.sigmoid((self._edge(index) - mean) / scale)).sum(-1)
        return (1 - UNIFORM) * below.masked_fill(index == 0, 0.0) + UNIFORM * index / self.bins

    def _log_at(self, index: Tensor, parts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """log p of bins in the mixture without its uniform part, shape (...)."""
        log_weight, mean, scale = parts
        low = ((self._edge(index).to(mean) - mean) / scale).masked_fill((index == 0)[..., None], -math.inf)
        high = ((self._edge(index + 1).to(mean) - mean) / scale).masked_fill(
            (index == self.bins - 1)[..., None], math.inf
        )
        # sigmoid(high) - sigmoid(low), without cancellation
        log_p = F.logsigmoid(high) + F.logsigmoid(-low) + (-torch.expm1(low - high)).log()
        return (log_weight + log_p).logsumexp(-1)

    def _edge(self, index: Tensor) -> Tensor:
        """Lower edges of bins, shape (..., 1), float64."""
        return (2 * index.double() / self.bins - 1)[..., None]

    @functools.cached_property
    def _exact(self) -> tuple[Tensor, Tensor, Tensor]:
        return _parts(self.parameters.double())


def _parts(parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logarithms of the weights, means and scales, shape (..., K)."""
    logits, mean, log_scale = parameters.unflatten(-1, (3, -1)).unbind(-2)
    return logits.log_softmax(-1), mean, log_scale.clamp(min=MIN_LOG_SCALE).exp()


def first_mixture(components: int) -> Tensor:
    """Parameters of a broad mixture with which training begins, shape (3 K,)."""
    means = torch.linspace(-1, 1, components + 2)[1:-1]
    return torch.cat([torch.zeros(components), means, torch.full((components,), -2.0)])
