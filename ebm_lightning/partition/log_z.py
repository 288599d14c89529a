"""log Z with its error and diagnostics."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist

import torch
from torch import Tensor

from ebm_lightning.checks import check_number


@dataclass(frozen=True)
class LogZ:
    r"""log Z in nats, with its error and diagnostics.

    Attributes:
        log_z: The estimate: the log of the mean weight. Its exponential is unbiased for Z.
        std_err: Standard error of ``log_z``, in nats. That of the weights cannot exceed 1 by construction. Above 0.5
            they are degenerate, and only the lower bound means anything. It is at least that of log-normal weights and,
            if a check measures log Z or the mass of modes in a second way, the difference.
        ess: Effective sample size as a fraction in (0, 1]: ``ess * num_chains`` independent weights of unit variance
            would give the same error.
        log_weights: Log weight of each chain, shape (num_chains,), float64. ``log_z`` is the log of their mean.
        samples: Where the chains ended, shape (num_chains, *shape). Weighted by ``log_weights``, they are draws of the
            model. With coordinates they are of u.
        lower: Stochastic lower bound: the mean log weight, or with resampling the mean log Z of the islands.
        upper: Stochastic upper bound from :func:`reverse_ais` with exact samples, otherwise None.
        per_class: log Z_y, shape (K,), float64. Their logsumexp is ``log_z``. None for an energy without classes.
        integrable: False if the energy falls along some ray. Z is then infinite and ``log_z`` is NaN.
        per_class_std_err: Standard error of each log Z_y, shape (K,), float64; NaN where too few chains carry a class.
            None for an energy without classes.
        why: Why the estimate is not reliable, and what to do about it, in one sentence. Empty if all diagnostics pass.
        reverse: Whether this is an estimate from :func:`reverse_ais`, where 1 / Z is unbiased and not Z.
        gradient_evaluations: Number of evaluations of the energy and its gradient, pilot and checks included.
        degrees_of_freedom: Degrees of freedom of ``std_err``; infinite if it is computed from all chains.
        betas: Inverse temperatures of the path, shape (T + 1,).
        ess_curve: Relative effective sample size along the path before resampling, shape (T,).
        acceptance: Fraction of accepted moves along the path, shape (T,).
    """

    log_z: float
    std_err: float = 0.0
    ess: float = 1.0
    log_weights: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64), repr=False)
    lower: float = -math.inf
    upper: float | None = None
    per_class: Tensor | None = None
    integrable: bool = True
    per_class_std_err: Tensor | None = None
    why: str = ""
    reverse: bool = False
    gradient_evaluations: int = 0
    degrees_of_freedom: float = math.inf
    betas: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    ess_curve: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    acceptance: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    samples: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)

    @property
    def reliable(self) -> bool:
        """Whether all diagnostics pass. Without data they cannot detect modes that no chain visits."""
        return not self.why

    @property
    def prior(self) -> Tensor:
        """The model's own p(y) = Z_y / Z, shape (K,).

        Raises:
            ValueError: The energy has no classes.
        """
        if self.per_class is None:
            raise ValueError(
                "'energy' should be a JointEnergy to have a prior over classes, got an energy without classes."
            )
        return self.per_class.softmax(0)

    @torch.no_grad()
    def log_prob(
        self, energy: Callable[..., Tensor], x: Tensor, y: Tensor | None = None, *, given_label: bool = False
    ) -> Tensor:
        r"""log p(x), with labels log p(x, y), or ``given_label`` log p(x|y) = -E(x, y) - log Z_y; in nats, shape (N,).

        The error of this estimate shifts all rows equally. With ``given_label`` it is the error of log Z_y.

        Arguments:
            energy: The energy whose log Z this is.
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
            raise ValueError(f"{missing} for log p(x|y), got None. Leave out 'given_label' for log p(x).")
        return -energy(x, y).double() - self.per_class.to(x.device)[y]

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided confidence interval of log Z. Uses Student's t if ``std_err`` comes from a few islands.

        Raises:
            ValueError: ``level`` outside (0, 1).
        """
        check_number("level", level, above=0, below=1)
        half = student_quantile(0.5 + level / 2, self.degrees_of_freedom) * self.std_err
        return self.log_z - half, self.log_z + half

    def lower_bound(self, delta: float = 0.05) -> float:
        r"""A bound that log Z exceeds with probability at least 1 - delta, whether the estimate is reliable or not.

        .. math:: P(\hat Z \ge Z / \delta) \le \delta, \qquad \log Z \ge \log \hat Z - \log(1 / \delta)

        This is Markov's inequality for the unbiased estimate of Z.

        Raises:
            ValueError: ``delta`` outside (0, 1), or an estimate of 1 / Z from :func:`reverse_ais`.
        """
        check_number("delta", delta, above=0, below=1)
        if self.reverse:
            raise ValueError("'lower_bound' should be asked of ais, got an estimate of 1 / Z. Use its 'upper'.")
        return self.log_z + math.log(delta)


def student_quantile(p: float, degrees_of_freedom: float) -> float:
    """Quantile of Student's t, by its expansion in 1 / degrees_of_freedom (Abramowitz & Stegun 26.7.5).

    The error is below 1e-3 from 7 degrees of freedom on.
    """
    z, d = NormalDist().inv_cdf(p), degrees_of_freedom
    return (
        z
        + (z**3 + z) / (4 * d)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * d**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * d**3)
    )


def log_mean_exp(log_w: Tensor) -> Tensor:
    """log of the mean of exp(log_w) over the first dimension, float64."""
    return log_w.double().logsumexp(0) - math.log(len(log_w))


def relative_ess(log_w: Tensor) -> float:
    """Kish's effective sample size as a fraction: (sum w)^2 / (n sum w^2)."""
    if not (log_w != -math.inf).any():
        return 0.0
    w = log_w.double().softmax(0)
    return float(1 / (len(w) * w.square().sum()))
