"""The multivariate Student t density, a proposal with heavy tails."""

import math

import torch
from torch import Tensor

from ebm_lightning.checks import check_number
from ebm_lightning.partition.spread import mean_and_factor
from ebm_lightning.supports import Density


class StudentT(Density):
    r"""The multivariate Student t density on R^D, for models with heavy tails.

    .. math:: q_0(x) \propto \left(1 + \tfrac{1}{\nu} |L^{-1} (x - mean)|^2\right)^{-(\nu + D) / 2}

    Arguments:
        mean: Shape (*shape).
        scale: Standard deviations of the normal that it approaches for large ``dof``, shape (*shape); or their lower
            triangular factor L over flattened components, shape (D, D).
        dof: Degrees of freedom nu, positive. 1 is Cauchy's density.

    Raises:
        ValueError: ``scale`` or ``dof`` is not positive.
    """

    def __init__(self, mean: Tensor, scale: Tensor, dof: float = 2.0) -> None:
        check_number("dof", dof, above=0)
        self.mean, self.scale, self.dof = mean.double(), scale.double(), float(dof)
        self.full = scale.shape != mean.shape
        diagonal = self.scale.diagonal() if self.full else self.scale
        check_number("scale", float(diagonal.min()), above=0)
        d = mean.numel()
        self.log_constant = (
            math.lgamma((dof + d) / 2) - math.lgamma(dof / 2) - 0.5 * d * math.log(dof * math.pi)
        ) - float(diagonal.log().sum())

    @classmethod
    def fit(cls, x: Tensor, log_w: Tensor | None = None, dof: float = 2.0, inflation: float = 1.0) -> "StudentT":
        """Match the mean and covariance of weighted points, with a diagonal covariance above 1024 dimensions.

        Arguments:
            x: Data, or ends of chains, shape (N, *shape).
            log_w: Log weight of each, shape (N,); equal by default.
            dof: Degrees of freedom.
            inflation: Multiplies the scale.
        """
        mean, factor = mean_and_factor(x, log_w)
        scale = factor if factor.ndim == 2 else factor.view(x.shape[1:])
        return cls(mean.view(x.shape[1:]), inflation * scale, dof)

    def log_prob(self, x: Tensor) -> Tensor:
        centered = (x.double() - self.mean.to(x.device)).flatten(1)
        scale = self.scale.to(x.device)
        z = torch.linalg.solve_triangular(scale, centered.T, upper=False).T if self.full else centered / scale.flatten()
        d = centered.shape[1]
        return self.log_constant - 0.5 * (self.dof + d) * torch.log1p(z.square().sum(1) / self.dof)

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        if device is None:
            device = "cpu" if generator is None else generator.device
        d = self.mean.numel()
        z = torch.randn((n, d), generator=generator, device=device, dtype=torch.float64)
        half = torch.full((n, 1), self.dof / 2, device=device, dtype=torch.float64)
        chi_square = 2 * torch._standard_gamma(half, generator=generator)
        z = z / (chi_square / self.dof).sqrt()
        scale = self.scale.to(device)
        z = z @ scale.T if self.full else z * scale.flatten()
        return (self.mean.to(device).flatten() + z).view(n, *self.mean.shape).float()
