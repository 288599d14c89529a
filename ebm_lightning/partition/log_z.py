"""An estimate of log Z that says how far to trust it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogZ:
    r"""log Z in nats, its error, and what the error rests on.

    Attributes:
        log_z: The estimate, log of the mean weight. Its exponential is unbiased for Z.
        std_err: Standard error of ``log_z``, in nats. Never above 1 by construction: a value above 0.5 means that the
            weights are degenerate and nothing is known but a lower bound.
        ess: Effective sample size as a fraction in (0, 1]: ``ess * chains`` independent weights of unit variance would
            give the same error.
        log_weights: Log weight of each chain, shape (chains,), float64: ``log_z`` is the log of their mean.
        lower: Stochastic lower bound: the mean log weight (with resampling, of the islands' estimates).
        upper: Stochastic upper bound from :func:`reverse_ais` with exact samples, else None.
        per_class: log Z_y, shape (K,), float64; their logsumexp is ``log_z``. None for a plain energy.
        integrable: False if the energy falls along some ray: Z is then infinite and ``log_z`` NaN.
        reliable: Whether all that can be checked without the truth is in order.
        gradient_evaluations: Of the energy, pilot included.
        degrees: Degrees of freedom of ``std_err``; infinite where it rests on all chains.
        betas: The path of inverse temperatures, shape (T + 1,).
        ess_curve: Effective sample size along the path before resampling, shape (T,).
        acceptance: Share of moves accepted along the path, shape (T,).
    """

    log_z: float
    std_err: float = 0.0
    ess: float = 1.0
    log_weights: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64), repr=False)
    lower: float = -math.inf
    upper: float | None = None
    per_class: Tensor | None = None
    integrable: bool = True
    reliable: bool = True
    gradient_evaluations: int = 0
    degrees: float = math.inf
    betas: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    ess_curve: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    acceptance: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)

    @property
    def prior(self) -> Tensor:
        """The model's own p(y) = Z_y / Z, shape (K,).

        Raises:
            ValueError: The energy has no classes.
        """
        if self.per_class is None:
            raise ValueError("'energy' should be a JointEnergy to have a prior over classes, got a plain energy.")
        return self.per_class.softmax(0)

    @torch.no_grad()
    def log_prob(
        self, energy: Callable[..., Tensor], x: Tensor, y: Tensor | None = None, *, given_label: bool = False
    ) -> Tensor:
        r"""log p(x), with labels log p(x, y), or ``given_label`` log p(x|y) = -E(x, y) - log Z_y; in nats, shape (N,).

        All rows share this estimate's error; ``given_label`` that of its log Z_y.

        Arguments:
            energy: The one that this estimate is of.
            x: Shape (N, *shape).
            y: Labels, shape (N,).
            given_label: Condition on the labels.

        Raises:
            ValueError: ``given_label`` without labels, or for an energy without classes.
        """
        if not given_label:
            return -(energy(x) if y is None else energy(x, y)).double() - self.log_z
        if y is None or self.per_class is None:
            missing = "'y' should be labels" if y is None else "'energy' should be a JointEnergy"
            raise ValueError(f"{missing} for log p(x|y), got none. Leave out 'given_label' for log p(x).")
        return -energy(x, y).double() - self.per_class.to(x.device)[y]

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided confidence interval of log Z, by Student's t where ``std_err`` rests on a few islands.

        Raises:
            ValueError: ``level`` outside (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(f"'level' should be in (0, 1), got {level}.")
        half = student_quantile(0.5 + level / 2, self.degrees) * self.std_err
        return self.log_z - half, self.log_z + half


def student_quantile(p: float, degrees: float) -> float:
    """Quantile of Student's t by its expansion in 1 / degrees (Abramowitz & Stegun 26.7.5); 1e-3 from 7 degrees on."""
    z, d = NormalDist().inv_cdf(p), degrees
    return (
        z
        + (z**3 + z) / (4 * d)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * d**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * d**3)
    )


def log_mean_exp(log_w: Tensor) -> Tensor:
    """In float64, over the first dimension."""
    return log_w.double().logsumexp(0) - math.log(len(log_w))


def effective_share(log_w: Tensor) -> float:
    """Kish's effective sample size as a fraction: (sum w)^2 / (n sum w^2)."""
    w = log_w.double().softmax(0)
    return float(1 / (len(w) * w.square().sum()))
