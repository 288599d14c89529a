"""A joint energy model whose p(x) is trained by telling data from samples of the reference density."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebm_lightning.chains import Chains, ReplayBuffer
from ebm_lightning.chains.step import ChainStep
from ebm_lightning.energies import tilt_of
from ebm_lightning.modules.jem import JEM
from ebm_lightning.modules.precompute_gradient import precompute_gradient
from ebm_lightning.samplers import Sampler, State, eval_mode
from ebm_lightning.supports import Support
from ebm_lightning.supports.density import zero_gradient


class NoiseContrastiveJEM(JEM):
    r"""A :class:`JEM` whose generative term is noise-contrastive estimation (NCE) against the reference density q.

    .. math::
        -\log \sigma(t(x)) - \mathbb{E}_{x' \sim q} \log \sigma(-t(x')), \qquad
        t(x) = \log \sum_y e^{f(x)[y]}

    The classifier learns to tell data from samples of q, with t as the log odds. At the optimum
    :math:`e^{t(x)} = p(x) / q(x)`, so the model is the density of the data and log Z is that of q: 0 with a
    reference density. No chain moves in training, so energies cannot diverge from chains, and a step costs as much as
    one of a classifier. In exchange the gradient says little where q and the data differ so much that all samples are
    told apart: take the best q that there is, such as an :class:`~ebm_lightning.AutoregressiveDensity`, or coordinates.
    Where t is not the optimum, log Z is not 0: estimate it.

    Samples of q are drawn once, when training starts, and are used again: ``chains`` holds them. The sampler moves the
    chains of :meth:`sample` only.

    References:
        Gutmann & Hyvarinen, Noise-contrastive estimation, 2010, eq. 3.
        https://proceedings.mlr.press/v9/gutmann10a.html
        Deng et al., Residual energy-based models for text generation, 2020, for a q that is an autoregressive density.
        https://arxiv.org/abs/2004.11714

    Arguments:
        chains: The samples of q. By default ``ReplayBuffer(10_000, reinit_prob=0.0)``; with a positive ``reinit_prob``
            some are replaced by new ones at each step.

    The other arguments are those of :class:`JEM`. ``energy_l2`` is 0 by default.

    Raises:
        ValueError: ``joint_weight`` or ``class_conditional_weight`` is positive, the chains do not start at the
            reference density, or an error of :class:`JEM`.
    """

    def __init__(
        self,
        classifier: nn.Module,
        num_classes: int,
        support: Support | None = None,
        sampler: Sampler | None = None,
        chains: Chains | None = None,
        **jem_arguments: Any,
    ) -> None:
        for name in ("joint_weight", "class_conditional_weight"):
            if jem_arguments.get(name):
                raise ValueError(
                    f"{name!r} should be 0 for NoiseContrastiveJEM, got {jem_arguments[name]}. Use "
                    "'generative_weight', with 'conditional_weight' for p(y|x)."
                )
        chains = ReplayBuffer(10_000, reinit_prob=0.0) if chains is None else chains
        super().__init__(classifier, num_classes, support, sampler, chains, **({"energy_l2": 0.0} | jem_arguments))
        if self.chains.initial is not None:
            raise ValueError(
                "'chains' should start at the reference density for NoiseContrastiveJEM, got "
                f"'initial' {type(self.chains.initial).__name__}. Drop 'initial', or make it the support's 'reference'."
            )

    def positive_phase(self, logits: Tensor, u: Tensor, y: Tensor) -> Tensor:
        """The weighted -log sigma(t) of the data, mean over the batch. Arguments as for :class:`JEM`."""
        log_odds = tilt_of(logits)
        if self.chain_step is not None:
            self.chain_step.energy_pos = -log_odds.detach().mean()
        return self.generative_weight * F.softplus(-log_odds).mean() + self._l2(logits)

    def negative_phase(self, u: Tensor, y: Tensor) -> Tensor:
        """The weighted -log sigma(-t) of samples of q, mean over the batch. Arguments as for :class:`JEM`."""
        u_neg = self.negatives(u)
        with eval_mode(self.energy):
            logits = self.chain_energy.logits(u_neg)
        log_odds = tilt_of(logits)
        if self.chain_step is not None:
            self.chain_step.energy_neg = -log_odds.detach().mean()
        return precompute_gradient(self.generative_weight * F.softplus(log_odds).mean() + self._l2(logits), self.energy)

    def negatives(self, u: Tensor, y: Tensor | None = None) -> Tensor:
        """A sample of q for each row of ``u``, in coordinates."""
        x, index = self.chains.draw(len(u), None, self.generator, data=u)
        self.chains.store(index, x)
        state = State(x, torch.zeros(len(x), device=x.device), zero_gradient(x))
        self.chain_step = ChainStep(self.chains, index, state)
        return x

    def chains_follow_gradients(self) -> bool:
        return False
