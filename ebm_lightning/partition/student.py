"""The multivariate Student t density, a proposal with heavy tails."""

import math

import torch
from torch import Tensor

from ebm_lightning.checks import check_number
from ebm_lightning.partition.spread import mean_and_factor
from ebm_lightning.partition.truncated_student import BetweenWalls
from ebm_lightning.samplers.preconditioner import TurnedStep
from ebm_lightning.supports import Box, Density

EM_STEPS = 10
TAILS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)  # degrees of freedom that are compared
RUN_AGAIN = (
    "Run it again with a 'proposal' that is fitted to this run, StudentT.fit(estimate.samples, estimate.log_weights) "
    "in ebm_lightning.partition"
)
"""The remedy where the proposal is too narrow."""


class StudentT(Density):
    r"""The multivariate Student t density, for models with heavy tails; truncated to a box if one is given.

    .. math:: q_0(x) \propto \left(1 + \tfrac{1}{\nu} |L^{-1} (x - mean)|^2\right)^{-(\nu + D) / 2}

    Arguments:
        mean: Shape (*shape).
        scale: Standard deviations of the normal that it approaches for large ``dof``, shape (*shape); or their lower
            triangular factor L over flattened components, shape (D, D).
        dof: Degrees of freedom nu, positive. 1 is Cauchy's density.
        box: Truncates the density to its walls. ``scale`` then has shape (*shape).

    Raises:
        ValueError: ``scale`` or ``dof`` is not positive, or a matrix on a box.
    """

    def __init__(self, mean: Tensor, scale: Tensor, dof: float = 2.0, box: Box | None = None) -> None:
        check_number("dof", dof, above=0)
        self.mean, self.scale, self.dof = mean.double(), scale.double(), float(dof)
        self.full = scale.shape != mean.shape
        diagonal = self.scale.diagonal() if self.full else self.scale
        check_number("scale", float(diagonal.min()), above=0)
        d = mean.numel()
        self.log_constant = (
            math.lgamma((dof + d) / 2) - math.lgamma(dof / 2) - 0.5 * d * math.log(dof * math.pi)
        ) - float(diagonal.log().sum())
        self.box = box
        self._walls = None
        if box is not None:
            if self.full:
                raise ValueError(
                    f"'scale' should have the shape of 'mean' on a box, {tuple(mean.shape)}, got {tuple(scale.shape)}. "
                    "Use the standard deviation of each component."
                )
            self._walls = BetweenWalls(self.mean, self.scale, self.dof, box)
            self.log_constant -= self._walls.log_mass

    @classmethod
    def fit(
        cls,
        x: Tensor,
        log_w: Tensor | None = None,
        dof: float = 2.0,
        inflation: float = 1.0,
        step: Tensor | TurnedStep | None = None,
        box: Box | None = None,
    ) -> "StudentT":
        """Mean and scale of the largest likelihood, which a few distant points hardly change.

        The scale is a full matrix up to 1024 dimensions, and one number per component on a box. Too few points are
        regularized as in :func:`~ebm_lightning.partition.spread.mean_and_factor`.

        References:
            Liu, Rubin & Wu, Parameter expansion to accelerate EM: the PX-EM algorithm, 1998.
            https://doi.org/10.1093/biomet/85.4.755

        Arguments:
            x: Data, or ends of chains, shape (N, *shape).
            log_w: Log weight of each, shape (N,); equal by default.
            dof: Degrees of freedom.
            inflation: Multiplies the scale.
            step: Preconditioner of the model, which is used for the regularization.
            box: Truncates the density to its walls. The fit does not account for what is beyond them.
        """
        check_number("dof", dof, above=0)
        check_number("inflation", inflation, above=0)
        shape, rows = x.shape[1:], x.detach().flatten(1).double()
        log_w = rows.new_zeros(len(rows)) if log_w is None else log_w.to(rows)
        log_u = torch.zeros_like(log_w)  # of each point's expected precision
        for _ in range(EM_STEPS):
            mean, factor = mean_and_factor(x, log_w + log_u, step)
            scale = factor if factor.ndim == 2 else factor.view(shape)
            density = cls(mean.view(shape), scale, dof)
            log_u = math.log(dof + rows.shape[1]) - (dof + density.squared_distance(x)).log()
        scale = density.scale
        if box is not None and density.full:
            scale = scale.square().sum(1).sqrt().view(shape)
        return cls(density.mean, inflation * scale, dof, box)

    def with_likeliest_tails(self, x: Tensor, log_w: Tensor | None = None) -> "StudentT":
        """The density of the same shape whose degrees of freedom and size have the largest likelihood, on a grid.

        Arguments:
            x: Points, shape (N, *shape).
            log_w: Log weight of each, shape (N,); equal by default.
        """
        d = self.mean.numel()
        w = (x.new_zeros(len(x)) if log_w is None else log_w).double().to(x.device).softmax(0)
        squared, sizes = self.squared_distance(x)[:, None], torch.logspace(-0.5, 0.5, 41, dtype=torch.float64)
        best, likeliest = -math.inf, (1.0, self.dof)
        for dof in TAILS:
            distance = squared / (sizes.to(x.device).square() * dof)
            constant = math.lgamma((dof + d) / 2) - math.lgamma(dof / 2) - 0.5 * d * math.log(dof)
            log_p = constant - d * sizes.log().to(x.device) - 0.5 * (dof + d) * (w @ distance.log1p())
            if float(log_p.max()) > best:
                best, likeliest = float(log_p.max()), (float(sizes[log_p.argmax()]), dof)
        size, dof = likeliest
        return StudentT(self.mean, size * self.scale, dof, self.box)

    def squared_distance(self, x: Tensor) -> Tensor:
        """|L^-1 (x - mean)|^2, shape (N,), float64."""
        centered, scale = (x.double() - self.mean.to(x.device)).flatten(1), self.scale.to(x.device)
        if self.full:
            return torch.linalg.solve_triangular(scale, centered.T, upper=False).square().sum(0)
        return (centered / scale.flatten()).square().sum(1)

    def log_prob(self, x: Tensor) -> Tensor:
        exponent = 0.5 * (self.dof + self.mean.numel())
        return self.log_constant - exponent * torch.log1p(self.squared_distance(x) / self.dof)

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
        if self._walls is not None:
            return self._walls.sample(n, torch.device(device), generator)
        z = torch.randn((n, d), generator=generator, device=device, dtype=torch.float64)
        half = torch.full((n, 1), self.dof / 2, device=device, dtype=torch.float64)
        chi_square = 2 * torch._standard_gamma(half, generator=generator)
        z = z / (chi_square / self.dof).sqrt()
        scale = self.scale.to(device)
        z = z @ scale.T if self.full else z * scale.flatten()
        return (self.mean.to(device).flatten() + z).view(n, *self.mean.shape).float()
