"""Metropolis steps that redraw a part of the noise from which the reference density makes x."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ebm_lightning.checks import check_integer, check_number
from ebm_lightning.energies import Energy, log_tilt
from ebm_lightning.samplers.base import Sampler, State
from ebm_lightning.supports import Support
from ebm_lightning.supports.density import InvertibleDensity, zero_gradient


@dataclass(frozen=True)
class NoiseRefresh(Sampler):
    r"""Redraw the noise behind a patch of x, and accept or reject what the reference density q makes of it.

    .. math:: x = G(u), \quad u \sim U[0, 1]^D; \qquad \alpha = \min\left(1,
        \frac{e^{-E(x')} q(x)}{e^{-E(x)} q(x')}\right)

    The proposal keeps q, so the acceptance depends on E relative to q alone: in high dimension it is much larger than
    that of a step of the same length that q has to accept. No gradient is needed; E and q may jump. The stationary
    distribution is exp(-E).

    A patch is a square of an image, in all channels, at a random position, with a side that is uniform up to
    ``step_size`` times the longer side of the image. Of an x that is not an image each component is redrawn with a
    probability that is uniform up to ``step_size``. All noise is redrawn now and then if ``step_size`` is 1.

    References:
        Cotter et al., MCMC methods for functions: modifying old algorithms to make them faster, 2013, for proposals
        that keep a reference. https://arxiv.org/abs/1202.0709

    Arguments:
        step_size: Largest part of the noise that is redrawn at once, in (0, 1].
        steps: Steps per call.

    Raises:
        ValueError: A number is out of range. In use: the support's reference density is not an
            :class:`~ebm_lightning.supports.density.InvertibleDensity`.
    """

    step_size: float = 0.5
    steps: int = 1

    def __post_init__(self) -> None:
        check_number("step_size", self.step_size, above=0, at_most=1)
        check_integer("steps", self.steps, at_least=1)

    def transitions(
        self, energy: Energy, x: Tensor, support: Support, generator: torch.Generator | None
    ) -> Iterator[State]:
        reference = invertible_reference(support)
        u, log_q = reference.to_noise(x)
        tilt = log_tilt(energy, support, x)
        for _ in range(self.steps):
            before = -tilt - log_q - support.log_mass
            proposal, u_new, log_q_new = refreshed(reference, u, self.step_size, generator)
            tilt_new = log_tilt(energy, support, proposal)
            accepted = _log_uniform(tilt, generator) < tilt_new - tilt
            mask = accepted.view(-1, *[1] * (x.ndim - 1))
            x, u = torch.where(mask, proposal, x), torch.where(mask, u_new, u)
            tilt, log_q = torch.where(accepted, tilt_new, tilt), torch.where(accepted, log_q_new, log_q)
            yield State(x, before.to(x.dtype), zero_gradient(x), accepted)

    def scale_step(self, factor: float) -> "NoiseRefresh":
        """With the step size multiplied by ``factor``, at most 1."""
        return replace(self, step_size=min(1.0, self.step_size * factor))


def invertible_reference(support: Support) -> InvertibleDensity:
    """The reference density of ``support`` that makes x from noise.

    Raises:
        ValueError: It cannot.
    """
    reference = getattr(support, "reference", None)
    if not isinstance(reference, InvertibleDensity):
        raise ValueError(
            f"'support' should have a reference density that makes x from noise for NoiseRefresh, got {support}. Use "
            "Box(low, high, shape, reference=AutoregressiveDensity(...)), or another sampler."
        )
    return reference


def refreshed(
    reference: InvertibleDensity, u: Tensor, size: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Points of which a part of the noise ``u`` (N, *shape) is new, with their noise and log density (N,)."""
    noise = torch.rand(u.shape, generator=generator, device=u.device, dtype=u.dtype)
    u = torch.where(_part(u, size, generator), noise, u)
    x, log_q = reference.from_noise(u)
    return x, u, log_q


def _part(u: Tensor, size: float, generator: torch.Generator | None) -> Tensor:
    """Which components are redrawn, bool, broadcastable to ``u``."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=u.device)

    n = len(u)
    if u.ndim != 4:
        return uniform(*u.shape) < size * uniform(n, *[1] * (u.ndim - 1))
    longest = max(u.shape[2:])
    side = (1 + uniform(n) * math.ceil(size * longest)).floor()
    inside = []
    for length in u.shape[2:]:
        first = (uniform(n) * (length + side - 1)).floor() - side + 1  # every position with a pixel of the image
        at = torch.arange(length, device=u.device)
        inside.append((at >= first[:, None]) & (at < (first + side)[:, None]))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]


def _log_uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(like.shape, generator=generator, device=like.device, dtype=torch.float64).log()
