"""Block Gibbs: the kernel of a restricted Boltzmann machine, exact and without a step size."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm_lightning.boltzmann import RBMLogits, bernoulli, categorical
from ebm_lightning.energies import Energy, JointEnergy
from ebm_lightning.samplers.base import Sampler, State
from ebm_lightning.supports import Support


@dataclass(frozen=True)
class BlockGibbs(Sampler):
    r"""Sweeps of an RBM: hidden units given x and the label, then x and the label given the hidden units.

    .. math:: h \sim p(h | x, y), \qquad x \sim p(x | h), \quad y \sim p(y | h)

    Every draw is from an exact conditional, so p(x, y) is left as it is whatever the number of sweeps. A chain of
    E(x) starts with y drawn from p(y|x); one of ``functools.partial(energy, y=y)`` keeps its labels and aims at
    p(x|y). With chains that start at data, ``steps`` is the k of CD-k.

    References:
        Hinton, Training products of experts by minimizing contrastive divergence, 2002.
        Larochelle & Bengio, Classification using discriminative restricted Boltzmann machines, 2008, sec. 3.

    Arguments:
        steps: Sweeps per call.

    Raises:
        ValueError: No sweeps; when called, an energy that is not that of an RBM at temperature 1.
    """

    steps: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"'steps' should be at least 1, got {self.steps}: chains that never move teach nothing.")

    def transitions(
        self, energy: Energy, x: Tensor, support: Support, generator: torch.Generator | None
    ) -> Iterator[State]:
        joint, y = _rbm_of(energy)
        rbm, keep = joint.classifier, y is not None
        assert isinstance(rbm, RBMLogits)
        still = torch.zeros((), dtype=x.dtype, device=x.device).expand_as(x)  # corners have no gradient
        for _ in range(self.steps):
            logits = rbm(x)
            if y is None:
                y = categorical(logits, generator)
            value = joint.from_logits(logits, x, y if keep else None)
            x, y_next = sweep(rbm, x, y, generator)
            y = y if keep else y_next
            yield State(x, value, still)


def sweep(rbm: RBMLogits, x: Tensor, y: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """One sweep of (x, y): shapes (N, *shape) and (N,) in, the same out. Leaves p(x, y) as it is."""
    h = bernoulli(rbm.hidden_logits(x, y), generator)
    return rbm.draw_visible(h, generator), categorical(rbm.class_logits(h), generator)


def _rbm_of(energy: Energy) -> tuple[JointEnergy, Tensor | None]:
    """The joint energy behind ``energy``, and the labels that its chains keep."""
    labels = None
    while isinstance(energy, functools.partial):
        labels = energy.keywords.get("y", labels)
        energy = energy.func
    if not isinstance(energy, JointEnergy) or not isinstance(energy.classifier, RBMLogits):
        inner = energy.classifier if isinstance(energy, JointEnergy) else energy
        raise ValueError(
            f"'energy' should be that of an RBM for BlockGibbs, got {type(inner).__name__}. Use SGLD or HMC."
        )
    if energy.temperature != 1:
        raise ValueError(
            f"'temperature' should be 1 for BlockGibbs, got {energy.temperature}: logits divided by T are those of no "
            "RBM. Divide the weights and biases by T instead."
        )
    return energy, labels
