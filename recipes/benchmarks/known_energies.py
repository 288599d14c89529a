"""Energies with a closed form or an exact sum for log Z, and exact samples, on which annealing can fail."""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ebm_lightning.energies import JointEnergy, MixtureLogits
from ebm_lightning.partition import rbm_log_z
from ebm_lightning.partition.enumeration import binary_states
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Binary, Euclidean


@dataclass(frozen=True)
class Student:
    """Multivariate Student t with integer degrees of freedom, unnormalized: E(0) = 0."""

    dimensions: int
    degrees_of_freedom: int

    def __call__(self, x: Tensor) -> Tensor:
        nu = self.degrees_of_freedom
        return (nu + self.dimensions) / 2 * (x.square().sum(1) / nu).log1p()

    @property
    def log_z(self) -> float:
        nu, d = self.degrees_of_freedom, self.dimensions
        return math.lgamma(nu / 2) + d / 2 * math.log(nu * math.pi) - math.lgamma((nu + d) / 2)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        chi_squares = torch.randn(n, self.degrees_of_freedom, generator=generator).square().mean(1, keepdim=True)
        return torch.randn(n, self.dimensions, generator=generator) / chi_squares.sqrt()


@dataclass(frozen=True)
class Valley:
    r"""A Rosenbrock valley. .. math:: E(x) = a (1 - x_1)^2 + b \sum_i (x_{i+1} - x_i^2)^2"""

    dimensions: int
    a: float
    b: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.a * (1 - x[:, 0]).square() + self.b * (x[:, 1:] - x[:, :-1].square()).square().sum(1)

    @property
    def log_z(self) -> float:
        return 0.5 * math.log(math.pi / self.a) + (self.dimensions - 1) / 2 * math.log(math.pi / self.b)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(n, self.dimensions, generator=generator)
        x = [1 + z[:, 0] / math.sqrt(2 * self.a)]
        for column in z.T[1:]:
            x.append(x[-1].square() + column / math.sqrt(2 * self.b))
        return torch.stack(x, 1)


@dataclass(frozen=True)
class Funnel:
    """Neal's funnel, normalized: x_1 ~ N(0, std^2), and all others N(0, exp(x_1)) given x_1."""

    dimensions: int
    std: float = 3.0
    log_z = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        v, rest = x[:, 0], x[:, 1:].square().sum(1)
        constant = self.dimensions / 2 * math.log(2 * math.pi) + math.log(self.std)
        return 0.5 * (v / self.std).square() + 0.5 * (rest * (-v).exp() + (self.dimensions - 1) * v) + constant

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(n, self.dimensions, generator=generator)
        v = self.std * z[:, :1]
        return torch.cat([v, z[:, 1:] * (v / 2).exp()], 1)


@dataclass(frozen=True)
class Shells:
    """A standard normal density, and with weight ``share`` one of width ``std``, normalized.

    In many dimensions nearly all mass is in two shells, of radius sqrt(D) and std sqrt(D).
    """

    dimensions: int
    std: float
    share: float
    log_z = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        squared, constant = x.double().square().sum(1), self.dimensions / 2 * math.log(2 * math.pi)
        inner = math.log1p(-self.share) - squared / 2
        outer = math.log(self.share) - squared / (2 * self.std**2) - self.dimensions * math.log(self.std)
        return (constant - torch.logaddexp(inner, outer)).to(x.dtype)


@dataclass(frozen=True)
class Spikes:
    """Gaussian spikes of equal width on a plateau of density 1 over [0, 1]^D.

    Attributes:
        centers: Shape (K, D), at least 5 ``std`` from the walls.
        std: Width of every spike.
        log_mass: Log of the integral of each spike, shape (K,).
    """

    centers: Tensor
    std: float
    log_mass: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        squares = (x[:, None] - self.centers).square().sum(2) / (2 * self.std**2)
        log_norm = self.centers.shape[1] * math.log(self.std * math.sqrt(2 * math.pi))
        spikes = self.log_mass - squares - log_norm
        return -torch.cat([spikes.new_zeros(len(x), 1), spikes], 1).logsumexp(1)

    @property
    def log_z(self) -> float:
        c = self.centers.double()
        inside = torch.special.ndtr((1 - c) / self.std) - torch.special.ndtr(-c / self.std)
        masses = (self.log_mass.double() + inside.log().sum(1)).exp().sum()
        return float(masses.log1p())

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        weights = torch.cat([torch.ones(1), self.log_mass.exp()])
        index = torch.multinomial(weights, n, replacement=True, generator=generator)
        plateau = torch.rand(n, self.centers.shape[1], generator=generator)
        noise = self.std * torch.randn(plateau.shape, generator=generator)
        spike = self.centers[(index - 1).clamp(min=0)] + noise
        return torch.where((index == 0)[:, None], plateau, spike).clamp(0, 1)


@dataclass(frozen=True)
class RotatedGaussian:
    """A Gaussian with these standard deviations (D,) along randomly rotated axes, unnormalized: E(0) = 0."""

    std: Tensor
    seed: int = 0

    @functools.cached_property
    def axes(self) -> Tensor:
        d = len(self.std)
        noise = torch.randn(d, d, generator=make_generator(self.seed, "axes"), dtype=torch.float64)
        return torch.linalg.qr(noise).Q.float()

    def __call__(self, x: Tensor) -> Tensor:
        return 0.5 * (x @ self.axes / self.std).square().sum(1)

    @property
    def log_z(self) -> float:
        return float((self.std.double().log() + 0.5 * math.log(2 * math.pi)).sum())

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return (torch.randn(n, len(self.std), generator=generator) * self.std) @ self.axes.T


@dataclass(frozen=True)
class RBM:
    """The free energy of a binary RBM. Weights have shape (V, H)."""

    weights: Tensor
    visible_bias: Tensor
    hidden_bias: Tensor

    @property
    def parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weights, self.visible_bias, self.hidden_bias

    def __call__(self, v: Tensor) -> Tensor:
        return -(v @ self.visible_bias) - softplus(self.hidden_bias + v @ self.weights).sum(1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Exact draws; enumerates the hidden states."""
        h = torch.cat(list(binary_states(len(self.hidden_bias)))).double()
        fields = self.visible_bias.double() + h @ self.weights.double().T
        log_p = h @ self.hidden_bias.double() + softplus(fields).sum(1)
        index = torch.multinomial(log_p.softmax(0), n, replacement=True, generator=generator)
        return torch.bernoulli(fields[index].sigmoid(), generator=generator).float()

    @property
    def log_z(self) -> float:
        return rbm_log_z(*self.parameters)

    @property
    def support(self) -> Binary:
        return Binary((len(self.visible_bias),))


def two_phases(visible: int, hidden: int, coupling: float, log_odds: float, roughness: Tensor | None = None) -> RBM:
    """An RBM with a phase in which almost all units are off, and one in which almost all are on.

    Arguments:
        visible, hidden: Numbers of units.
        coupling: Mean weight.
        log_odds: Log mass of the phase that is on, minus that of the state in which all hidden units are off.
        roughness: Added to the weights, shape (visible, hidden).
    """
    w, b = torch.full((visible, hidden), coupling), torch.full((visible,), -3.0)
    w = w if roughness is None else w + roughness
    gap = softplus(b).sum() - softplus(b + w.sum(1)).sum()
    return RBM(w, b, ((gap + log_odds) / hidden).expand(hidden).clone())


def mixture(means: Tensor, std: float, weights: Tensor | None = None) -> JointEnergy:
    """The energy of a normalized Gaussian mixture: log Z = 0."""
    return JointEnergy(MixtureLogits(means, std, weights), Euclidean(tuple(means.shape[1:])))


def mixture_samples(energy: JointEnergy, n: int, generator: torch.Generator) -> Tensor:
    logits = energy.classifier
    assert isinstance(logits, MixtureLogits)
    index = torch.multinomial(logits.log_weights.exp(), n, replacement=True, generator=generator)
    means = logits.means[index]
    return means + logits.std * torch.randn(means.shape, generator=generator)
