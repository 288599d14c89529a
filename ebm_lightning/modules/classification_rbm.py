"""The classification RBM: a joint energy model with exact conditionals and, if it is small, an exact log Z."""

from typing import Any

import torch
from torch import Tensor

from ebm_lightning.chains import Chains, DataInit
from ebm_lightning.modules.conditional import Terms
from ebm_lightning.modules.jem import JEM
from ebm_lightning.partition import rbm_class_log_z
from ebm_lightning.rbm import RBMLogits
from ebm_lightning.resume.hparams import rebuild
from ebm_lightning.samplers import BlockGibbs, Sampler
from ebm_lightning.supports import Binary, Support


class ClassificationRBM(JEM):
    r"""A restricted Boltzmann machine over x, its label and hidden units, trained with the loss of :class:`JEM`.

    .. math::
        f_y(x) = b \cdot x + d_y + \sum_j \mathrm{softplus}(c_j + U_{jy} + (W x)_j), \qquad
        p(y|x) = \mathrm{softmax}(f(x))[y]

    In the paper's terms, discriminative training has ``conditional_weight`` only, generative training ``joint_weight``
    only, and hybrid training both. Negatives are sampled by block Gibbs: CD-k with ``DataInit`` (k is the sampler's
    ``steps``), persistent CD with ``ReplayBuffer``, short runs with ``SupportInit``. Given the negatives, hidden units
    and labels are summed out. For continuous data use ``support=Gaussian(mean, std, shape)``, which gives the
    Gaussian-Bernoulli RBM.

    References:
        Larochelle & Bengio, Classification using discriminative restricted Boltzmann machines, 2008.

    Arguments:
        num_visible: V, the number of components of x.
        num_hidden: H.
        num_classes: K.
        support: ``Binary(shape)`` or ``Gaussian(mean, std, shape)``; ``Binary((num_visible,))`` by default. Gray pixels
            are an error unless it is ``Binary(shape, probabilities=True)``.
        sampler: ``BlockGibbs(1)`` by default.
        chains: Where negatives start; ``DataInit()`` by default.
        conditional_weight: Weight of -log p(y|x).
        generative_weight: Weight of -log p(x).
        joint_weight: Weight of -log p(x, y); the default 0.01 is that of the paper's hybrid training.
        class_conditional_weight: Weight of -log p(x|y).
        exact_gradient: Sum over all states instead of sampling: the exact likelihood and gradient, for small models.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the learning-rate schedule from the optimizer, as for :class:`ConditionalEBM`.
        seed: Seed of the chains, as for :class:`JEM`.

    Raises:
        ValueError: A number below 1, another kind of support, a negative weight, ``exact_gradient`` with too many
            states to sum, or an error of :class:`JEM`.
    """

    def __init__(
        self,
        num_visible: int,
        num_hidden: int,
        num_classes: int,
        support: Support | None = None,
        sampler: Sampler | None = None,
        chains: Chains | None = None,
        *,
        generative_weight: float = 0.0,
        joint_weight: float = 0.01,
        exact_gradient: bool = False,
        **jem_arguments: Any,
    ) -> None:
        support = rebuild(support, Support, "support") or Binary((num_visible,))
        super().__init__(
            RBMLogits(num_visible, num_hidden, num_classes, support),
            num_classes,
            support,
            rebuild(sampler, Sampler, "sampler") or BlockGibbs(),
            rebuild(chains, Chains, "chains") or DataInit(),
            generative_weight=generative_weight,
            joint_weight=joint_weight,
            energy_l2=0.0,  # block Gibbs has no step size, so it needs no bound on the energy
            **jem_arguments,
        )
        self.exact_gradient = exact_gradient
        if exact_gradient:
            with torch.no_grad():
                rbm_class_log_z(self.rbm)  # raises here rather than at the first batch

    @property
    def rbm(self) -> RBMLogits:
        """The classifier, which also has the conditionals of the RBM."""
        assert isinstance(self.classifier, RBMLogits)
        return self.classifier

    def loss_terms(self, x: Tensor, y: Tensor, x_gen: Tensor | None = None, y_gen: Tensor | None = None) -> Terms:
        self.rbm.observe(x, y)
        return super().loss_terms(x, y, x_gen, y_gen)

    def negative_phase(self, x: Tensor, y: Tensor) -> Tensor:
        """As for JEM; with ``exact_gradient`` the weighted log Z, so that the loss is the negative log-likelihood."""
        if not self.exact_gradient:
            return super().negative_phase(x, y)
        log_z_y = rbm_class_log_z(self.rbm)
        marginal = (self.generative_weight + self.joint_weight) * log_z_y.logsumexp(0)
        return (marginal + self.class_conditional_weight * log_z_y[y].mean()).to(self.rbm.weight.dtype)
