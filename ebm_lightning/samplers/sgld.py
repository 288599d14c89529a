"""Stochastic gradient Langevin dynamics (SGLD), the sampler of JEM."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ebm_lightning.checks import check_integer, check_number, plain_numbers
from ebm_lightning.energies import Energy
from ebm_lightning.samplers.base import Sampler, State
from ebm_lightning.samplers.gradient import value_and_gradient
from ebm_lightning.supports import Support


@dataclass(frozen=True)
class SGLD(Sampler):
    r"""Unadjusted Langevin dynamics with separate step size and noise.

    .. math:: x_{k+1} = x_k - \epsilon \nabla E(x_k) + s \xi_k, \qquad \xi_k \sim N(0, I)

    As the step size goes to 0, the stationary distribution tends to exp(-E / T) with T = s^2 / (2 epsilon), see
    :attr:`implied_temperature`. JEM's settings (step 1, noise 0.01) give T = 5e-5: nearly gradient descent, not samples
    from p(x). A finite step size causes a bias, because steps are never rejected. Estimators of log Z therefore do not
    accept this kernel.

    References:
        Welling & Teh, Bayesian learning via stochastic gradient Langevin dynamics, 2011.
        Grathwohl et al. 2020, eq. 2. https://arxiv.org/abs/1912.03263

    Arguments:
        step_size: epsilon, in squared units of x per unit of energy.
        noise_std: s, in units of x. Give either this or ``temperature``.
        steps: Steps per call.
        temperature: T, which sets s = sqrt(2 epsilon T). 1 if neither is given.
        max_gradient: Clamps each component of the gradient to [-max_gradient, max_gradient] (JEM++ uses 1). The target
            is then no longer exp(-E / T).
        boundary: What happens to a step that leaves the support: "reflect", or "clamp" (JEM++), which accumulates mass
            on the walls.

    Raises:
        ValueError: A number is out of range, or ``noise_std`` and ``temperature`` are both given.
    """

    step_size: float = 1.0
    noise_std: float | None = None
    steps: int = 20
    temperature: float | None = None
    max_gradient: float | None = None
    boundary: Literal["reflect", "clamp"] = "reflect"

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_number("step_size", self.step_size, above=0)
        check_integer("steps", self.steps, at_least=1)
        check_number("noise_std", self.noise_std, at_least=0, optional=True)
        check_number("temperature", self.temperature, at_least=0, optional=True)
        check_number("max_gradient", self.max_gradient, above=0, optional=True)
        if self.noise_std is not None and self.temperature is not None:
            raise ValueError(
                f"'noise_std' and 'temperature' should not both be given, got {self.noise_std} and "
                f"{self.temperature}. Drop one: temperature = noise_std^2 / (2 step_size)."
            )
        if self.boundary not in ("reflect", "clamp"):
            raise ValueError(f"'boundary' should be 'reflect' or 'clamp', got {self.boundary!r}.")

    @classmethod
    def jem(cls, steps: int = 20) -> "SGLD":
        """The settings of the JEM paper for images in [-1, 1]: step 1 and noise 0.01, so T = 5e-5."""
        return cls(step_size=1.0, noise_std=0.01, steps=steps)

    @classmethod
    def langevin(cls, step_size: float = 0.005, temperature: float = 1.0, steps: int = 40) -> "SGLD":
        """Langevin dynamics with the noise set by the temperature: 0.1 at step 0.005 and temperature 1.

        Chains diverge where the curvature of the energy exceeds 2 / ``step_size``, so the step size should be below
        the smallest variance of the data along any direction. Train with ``energy_l2``, or use a
        :class:`~ebm_lightning.DivergenceGuard`.
        """
        return cls(step_size=step_size, temperature=temperature, steps=steps)

    @property
    def noise(self) -> float:
        """s, given directly or by the temperature."""
        if self.noise_std is not None:
            return self.noise_std
        return (2 * self.step_size * (1.0 if self.temperature is None else self.temperature)) ** 0.5

    @property
    def implied_temperature(self) -> float:
        """T = s^2 / (2 epsilon). The target is exp(-E / T)."""
        return self.noise**2 / (2 * self.step_size)

    def scale_step(self, factor: float) -> "SGLD":
        noise_std = None if self.noise_std is None else self.noise_std * factor**0.5
        return replace(self, step_size=self.step_size * factor, noise_std=noise_std)

    def transitions(
        self, energy: Energy, x: Tensor, support: Support, generator: torch.Generator | None
    ) -> Iterator[State]:
        inside = support.reflect if self.boundary == "reflect" else support.clamp
        for _ in range(self.steps):
            value, gradient = value_and_gradient(energy, x)
            drift = gradient if self.max_gradient is None else gradient.clamp(-self.max_gradient, self.max_gradient)
            noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = inside(x.add(drift, alpha=-self.step_size).add_(noise, alpha=self.noise))
            yield State(x, value, gradient)
