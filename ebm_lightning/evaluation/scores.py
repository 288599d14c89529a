r"""Scores for out-of-distribution detection. Each is meant to be larger for in-distribution x.

==========================  ==============================  =======================================
function                    formula                         known as
==========================  ==============================  =======================================
:func:`log_density`         log p(x) + log Z = -E(x)        energy score (Liu et al. 2020)
:func:`max_probability`     max_y p(y|x)                    maximum softmax probability, MSP
:func:`negative_entropy`    -H[p(y|x)]                      predictive entropy
:func:`approximate_mass`    -\|grad_x log p(x)\|            approximate mass (Grathwohl et al. 2020)
==========================  ==============================  =======================================

The maximum softmax probability and the entropy use the classifier only: they are defined for any classifier, trained as
an energy model or not. The other two use the energy E(x) = -logsumexp_y f(x)[y] - log q(x).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ebm_lightning.energies import JointEnergy, check_energies
from ebm_lightning.samplers import frozen, value_and_gradient

Score = Callable[[JointEnergy, Tensor], Tensor]
"""(energy, x) -> scores (N,), larger for in-distribution x."""


def log_density(energy: JointEnergy, x: Tensor) -> Tensor:
    """log p(x) + log Z = -E(x), shape (N,), in nats. log Z is a constant, so it does not change the ranking.

    References:
        Liu et al., Energy-based out-of-distribution detection, 2020. https://arxiv.org/abs/2010.03759
    """
    value = energy(x)
    check_energies(value, x)
    return -value


def max_probability(energy: JointEnergy, x: Tensor) -> Tensor:
    """The maximum softmax probability (MSP), max_y p(y|x), shape (N,): the confidence of the classifier.

    References:
        Hendrycks & Gimpel, A baseline for detecting misclassified and out-of-distribution examples in neural networks,
        2017. https://arxiv.org/abs/1610.02136
    """
    return energy.logits(x).softmax(1).amax(1)


def negative_entropy(energy: JointEnergy, x: Tensor) -> Tensor:
    """Minus the entropy of the predicted classes, -H[p(y|x)] = sum_y p(y|x) log p(y|x), shape (N,), in nats."""
    log_p = energy.logits(x).log_softmax(1)
    return (log_p.exp() * log_p).sum(1)


def approximate_mass(energy: JointEnergy, x: Tensor) -> Tensor:
    r"""Minus the norm of the gradient of log p, shape (N,), in nats per unit of x.

    .. math:: -\| \nabla_x \log p(x) \|_2

    Typical points lie where the density is flat. A point outside the typical set lies on a slope, even if its density
    is high. Works under ``no_grad`` and in inference mode; the classifier runs in eval mode, and its mode is restored.

    References:
        Grathwohl et al. 2020, sec. 5.3.2. https://arxiv.org/abs/1912.03263
    """
    with frozen(energy), torch.inference_mode(False), torch.no_grad():
        gradient = value_and_gradient(energy, x.clone())[1]
    return -gradient.flatten(1).norm(dim=1)
