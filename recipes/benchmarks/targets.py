"""Targets with known log Z, and the ways to estimate it, for ``adversarial.py``.

Benchmarks import this file by ``from targets import ...``.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from known_energies import RBM
from torch import Tensor, nn

from ebm_lightning import Density, LogZ
from ebm_lightning.energies import Energy
from ebm_lightning.partition import Normal, ais, bracket, exact_log_z, laplace_log_z, rbm_ais, reverse_ais
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Support

Draw = Callable[[int, torch.Generator], Tensor]
Budget = Mapping[str, Any]  # temperatures and num_chains; what it lacks has the default of the function that is run


@dataclass(frozen=True)
class Target:
    """An energy with known log Z, and how to estimate it.

    Attributes:
        energy, support, proposal: As for ``ais``.
        truth: log Z in nats. Infinity if Z is infinite, NaN if every reliable answer is wrong.
        data: Samples that lie in the modes of the model, shape (N, *shape). Passed to estimators that accept 'data'.
        estimate: Maps (this target, seed, budget) to log Z, or raises a ValueError that refuses the target.
        budget: Temperatures and number of chains that differ from the defaults.
    """

    energy: Energy
    support: Support
    proposal: Density | None
    truth: float
    data: Tensor | None = None
    estimate: "Estimator" = field(default_factory=lambda: anneal)
    budget: Budget = field(default_factory=dict)

    def run(self, seed: int, budget: Budget) -> LogZ:
        """One estimate of log Z. ``budget`` overrides that of the target.

        Raises:
            ValueError: The estimator refuses the target.
        """
        return self.estimate(self, seed, {**self.budget, **budget})


# Estimators.

Estimator = Callable[[Target, int, Budget], LogZ]


def anneal(target: Target, seed: int, budget: Budget) -> LogZ:
    data = _if_accepted(ais, data=target.data)
    rng = make_generator(seed, "adversarial")
    return ais(target.energy, target.support, proposal=target.proposal, generator=rng, **budget, **data)


def anneal_rbm(target: Target, seed: int, budget: Budget) -> LogZ:
    """Anneal an :class:`RBM` from the mean of the data, or from its own biases if there are no data."""
    assert isinstance(target.energy, RBM)
    weights, visible, hidden = target.energy.parameters
    mean = None if target.data is None else target.data.mean(0)
    options = {**budget, **_if_accepted(rbm_ais, data=target.data)}
    rng = make_generator(seed, "adversarial")
    return rbm_ais(weights, visible, hidden, data_mean=mean, generator=rng, **options)


def anneal_class(target: Target, seed: int, budget: Budget, label: int) -> LogZ:
    """log Z_y of one class. A NaN error of a class means that it is unknown."""
    result = anneal(target, seed, budget)
    assert result.per_class is not None
    errors = result.per_class_std_err
    std_err = result.std_err if errors is None else float(errors[label])
    why = result.why or ("The error of this class is unknown." if math.isnan(std_err) else "")
    return replace(result, log_z=float(result.per_class[label]), std_err=std_err, why=why)


def anneal_unchanged(target: Target, seed: int, budget: Budget, module: nn.Module) -> LogZ:
    """As :func:`anneal`, but log Z is NaN if the state of ``module`` changes."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    result = anneal(target, seed, budget)
    unchanged = all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    return result if unchanged else replace(result, log_z=math.nan)


def reverse(target: Target, seed: int, budget: Budget, draw: Draw) -> LogZ:
    """Anneal to the proposal from 300 samples that ``draw`` makes and that are claimed to be exact."""
    rng, temperatures = make_generator(seed, "reverse"), {k: v for k, v in budget.items() if k == "temperatures"}
    return reverse_ais(
        target.energy,
        target.support,
        draw(300, rng),
        exact=True,
        proposal=target.proposal,
        generator=rng,
        **temperatures,
    )


def anneal_both_ways(target: Target, seed: int, budget: Budget, draw: Draw) -> LogZ:
    return bracket(anneal(target, seed, budget), reverse(target, seed, budget, draw))


def contradict(target: Target, seed: int, budget: Budget) -> LogZ:
    """A bracket whose upper bound lies 15 nats below the estimate."""
    forward = anneal(target, seed, budget)
    return bracket(forward, LogZ(forward.log_z - 15, upper=forward.log_z - 15))


def compute(target: Target, seed: int, budget: Budget) -> LogZ:
    return exact_log_z(target.energy, target.support)


def laplace(target: Target, seed: int, budget: Budget) -> LogZ:
    assert target.proposal is not None
    starts = target.proposal.sample(8, generator=make_generator(seed, "laplace"))
    return laplace_log_z(target.energy, target.support, starts=starts)


def normal(dimensions: int, std: float = 1.0) -> Normal:
    """N(0, std^2) in each of the dimensions."""
    return Normal(torch.zeros(dimensions), torch.full((dimensions,), float(std)))


def _if_accepted(function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Those of ``options`` that are not None and that ``function`` accepts."""
    accepted = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in accepted and value is not None}
