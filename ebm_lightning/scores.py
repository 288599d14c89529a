"""Scores that tell data in distribution from data out of it: larger for x that looks like the training data.

:func:`log_density`, :func:`max_probability` and :func:`negative_entropy` are read off the logits and live beside the
energy; :func:`approximate_mass` needs the gradient in x.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ebm_lightning.energies import JointEnergy, log_density, max_probability, negative_entropy
from ebm_lightning.samplers import quiet, value_and_gradient

__all__ = ["Score", "approximate_mass", "log_density", "max_probability", "negative_entropy"]

Score = Callable[[JointEnergy, Tensor], Tensor]
"""(energy, x) -> scores (N,), larger for data in distribution."""


def approximate_mass(energy: JointEnergy, x: Tensor) -> Tensor:
    r"""Minus the norm of the score, shape (N,), per unit of x.

    .. math:: -\| \nabla_x \log p(x) \|_2

    A typical x lies where the density is flat, an atypical one on a slope, even where its density is high. Works under
    ``no_grad`` and in Lightning's inference mode; the classifier runs in eval mode and is then as it was.

    References:
        Grathwohl et al. 2020, sec. 5.3.2. https://arxiv.org/abs/1912.03263
    """
    with quiet(energy), torch.inference_mode(False), torch.no_grad():
        gradient = value_and_gradient(energy, x.clone())[1]
    return -gradient.flatten(1).norm(dim=1)
