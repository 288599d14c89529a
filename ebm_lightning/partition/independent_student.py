"""Student t densities of independent components, for products of heavy tails."""

import math

import torch
from torch import Tensor

from ebm_lightning.partition.student import TAILS
from ebm_lightning.supports import Density

EM_STEPS = 20


class IndependentStudentT(Density):
    r"""A product of Student t densities, one for each component of x, each with its own degrees of freedom.

    .. math:: q_0(x) \propto \prod_j \left(1 + \frac{(x_j - m_j)^2}{\nu_j s_j^2}\right)^{-(\nu_j + 1) / 2}

    In :class:`~ebm_lightning.partition.StudentT` all components are far from their mean at once, or none is. Here one
    component is far while the others are not, as under a product of Laplace densities.

    Arguments:
        mean: m, shape (*shape).
        scale: s, positive, shape (*shape).
        dof: Degrees of freedom nu, positive, shape (*shape).
    """

    def __init__(self, mean: Tensor, scale: Tensor, dof: Tensor) -> None:
        self.mean, self.scale, self.dof = mean.double(), scale.double(), dof.double()

    @classmethod
    def fit(cls, x: Tensor, log_w: Tensor | None = None) -> "IndependentStudentT":
        """The density of the largest likelihood, with degrees of freedom from 1 to 8.

        References:
            Liu & Rubin, ML estimation of the t distribution using EM and its extensions, ECM and ECME, 1995.

        Arguments:
            x: Points, shape (N, *shape).
            log_w: Log weight of each, shape (N,); equal by default.
        """
        shape, rows = x.shape[1:], x.detach().flatten(1).double()
        w = (rows.new_zeros(len(rows)) if log_w is None else log_w.to(rows)).softmax(0)[:, None]
        best = torch.full(rows.shape[1:], -math.inf, device=rows.device, dtype=rows.dtype)
        mean, scale, likeliest = torch.zeros_like(best), torch.ones_like(best), torch.ones_like(best)
        for dof in TAILS:
            u = torch.ones_like(rows)  # each component's expected precision
            for _ in range(EM_STEPS):
                m = (w * u * rows).sum(0) / (w * u).sum(0)
                s = ((w * u * (rows - m).square()).sum(0) / (w * u).sum(0)).clamp(min=1e-24).sqrt()
                u = (dof + 1) / (dof + ((rows - m) / s).square())
            log_p = (w * _log_prob(rows, m, s, torch.full_like(m, dof))).sum(0)
            better = log_p > best
            best = torch.where(better, log_p, best)
            mean, scale, likeliest = (
                torch.where(better, new, old)
                for new, old in ((m, mean), (s, scale), (torch.full_like(m, dof), likeliest))
            )
        return cls(mean.view(shape), scale.view(shape), likeliest.view(shape))

    def log_prob(self, x: Tensor) -> Tensor:
        mean, scale, dof = (a.to(x.device) for a in (self.mean, self.scale, self.dof))
        return _log_prob(x.double(), mean, scale, dof).flatten(1).sum(1)

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
        mean, scale, dof = (a.to(device) for a in (self.mean, self.scale, self.dof))
        z = torch.randn((n, *mean.shape), generator=generator, device=device, dtype=torch.float64)
        chi_square = 2 * torch._standard_gamma((dof / 2).expand_as(z).contiguous(), generator=generator)
        return (mean + scale * z / (chi_square / dof).sqrt()).float()


def _log_prob(x: Tensor, mean: Tensor, scale: Tensor, dof: Tensor) -> Tensor:
    """Of each component, of the shape of x."""
    constant = torch.lgamma((dof + 1) / 2) - torch.lgamma(dof / 2) - 0.5 * (dof * math.pi).log() - scale.log()
    return constant - (dof + 1) / 2 * ((x - mean) / scale).square().div(dof).log1p()
