"""Block Gibbs sampling of a restricted Boltzmann machine."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm_lightning.checks import check_integer, plain_numbers
from ebm_lightning.energies import Energy, JointEnergy
from ebm_lightning.rbm import RBMLogits, bernoulli, categorical
from ebm_lightning.samplers.base import Sampler, State
from ebm_lightning.supports import Support


@dataclass(frozen=True)
class BlockGibbs(Sampler):
    r"""Block Gibbs sampling: draw the hidden units given x and y, then x and y given the hidden units.

    .. math:: h \sim p(h | x, y), \qquad x \sim p(x | h), \quad y \sim p(y | h)

    All draws are from exact conditionals, so p(x, y) is invariant, without a step size to tune. A chain of E(x) draws
    its first y from p(y|x). A chain of ``functools.partial(energy, y=y)`` keeps its label and targets p(x|y). If chains
    start at data, ``steps`` is the k of CD-k.

    References:
        Hinton, Training products of experts by minimizing contrastive divergence, 2002.
        Larochelle & Bengio, Classification using discriminative restricted Boltzmann machines, 2008, sec. 3.

    Arguments:
        steps: Sweeps per call.

    Raises:
        ValueError: ``steps`` is below 1. When called: the energy is not that of an RBM at temperature 1.
    """

    steps: int = 1

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_integer("steps", self.steps, at_least=1)

    def transitions(
        self, energy: Energy, x: Tensor, support: Support, generator: torch.Generator | None
    ) -> Iterator[State]:
        joint, y = _rbm_of(energy)
        rbm, keep = joint.classifier, y is not None
        assert isinstance(rbm, RBMLogits)
        no_gradient = torch.zeros((), dtype=x.dtype, device=x.device).expand_as(x)  # not computed
        for _ in range(self.steps):
            logits = rbm(x)
            if y is None:
                y = categorical(logits, generator)
            value = joint.from_logits(logits, x, y if keep else None)
            x, y_next = sweep(rbm, x, y, generator)
            y = y if keep else y_next
            yield State(x, value, no_gradient)


def sweep(rbm: RBMLogits, x: Tensor, y: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """One Gibbs sweep of x, shape (N, *shape), and y, shape (N,). It leaves p(x, y) invariant."""
    h = bernoulli(rbm.hidden_logits(x, y), generator)
    return rbm.draw_visible(h, generator), categorical(rbm.class_logits(h), generator)


def _rbm_of(energy: Energy) -> tuple[JointEnergy, Tensor | None]:
    """The joint energy behind ``energy``, and the labels bound to it, if any."""
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
            f"'temperature' should be 1 for BlockGibbs, got {energy.temperature}: dividing the logits by T does not "
            "give an RBM. Divide the weights and biases by T instead."
        )
    return energy, labels
