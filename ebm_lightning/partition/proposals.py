"""Where annealing starts: normalised densities that can be drawn from exactly."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ebm_lightning.samplers.hmc import flat
from ebm_lightning.supports import Binary, Box, Support


class Proposal(ABC):
    """A normalised density q_0 on the model's support."""

    uniform = False

    @abstractmethod
    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log q_0(x), shape (N,), float64, in nats, and its gradient, shape (N, *shape) or broadcastable to it."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` exact draws, shape (n, *shape), on the generator's device."""


class Reference(Proposal):
    """The support's own reference density, normalised: uniform on a box.

    Arguments:
        support: Of finite mass.

    Raises:
        ValueError: The support has infinite mass.
    """

    def __init__(self, support: Support) -> None:
        if support.log_mass == math.inf:
            raise ValueError(
                f"'proposal' should be given on {type(support).__name__}, whose mass is infinite, got None. Use "
                "Normal.fit(data), or train on a Box or Gaussian support."
            )
        self.support = support
        self.uniform = isinstance(support, Box | Binary)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.uniform:
            return torch.full((len(x),), -self.support.log_mass, dtype=torch.float64, device=x.device), flat(x)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            log_q = self.support.log_q(x)
            (gradient,) = torch.autograd.grad(log_q.sum(), x)
        return log_q.detach().double() - self.support.log_mass, gradient

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.support.sample(n, generator=generator)


class Normal(Proposal):
    r"""A diagonal Gaussian, truncated to the box if there is one.

    .. math:: q_0(x) = \prod_d \frac{N(x_d; mean_d, std_d^2)}{\Phi(b_d) - \Phi(a_d)}

    Too narrow a proposal cannot be mended by more temperatures: its weights look fine until they are not.

    Arguments:
        mean: Shape (*shape).
        std: Shape (*shape), positive.
        box: Truncates to its walls.
    """

    def __init__(self, mean: Tensor, std: Tensor, box: Box | None = None) -> None:
        if not (std > 0).all():
            raise ValueError(f"'std' should be positive, got a smallest value of {float(std.min())}.")
        self.mean, self.std, self.box = mean.double(), std.double(), box

    @classmethod
    def fit(cls, data: Tensor, box: Box | None = None, floor: float = 0.05) -> "Normal":
        """The moments of ``data`` (N, *shape), or of a replay buffer, with a smallest standard deviation."""
        return cls(data.mean(0), data.std(0).clamp(min=floor), box)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.mean.to(x.device), self.std.to(x.device)
        z = (x.double() - mean) / std
        log_q = -0.5 * z.square() - (std.log() + 0.5 * math.log(2 * math.pi))
        low, high = self._cdf_at_walls(x.device)
        return (log_q - (high - low).log()).flatten(1).sum(1), (-z / std).to(x.dtype)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        mean, std = self.mean.to(generator.device), self.std.to(generator.device)
        if self.box is None:
            z = torch.randn((n, *mean.shape), generator=generator, device=generator.device, dtype=torch.float64)
            return (mean + std * z).float()
        u = torch.rand((n, *mean.shape), generator=generator, device=generator.device, dtype=torch.float64)
        low, high = self._cdf_at_walls(generator.device)
        return self.box.clamp((mean + std * torch.special.ndtri(low + (high - low) * u)).float())

    def _cdf_at_walls(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, std = self.mean.to(device), self.std.to(device)
        if self.box is None:
            return torch.zeros_like(mean), torch.ones_like(mean)
        return torch.special.ndtr((self.box.low - mean) / std), torch.special.ndtr((self.box.high - mean) / std)
