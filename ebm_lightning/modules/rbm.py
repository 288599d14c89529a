"""The classification RBM: a joint energy model whose conditionals, and for few hidden units whose log Z, are exact."""

import torch
from torch import Tensor

from ebm_lightning.boltzmann import RBMLogits
from ebm_lightning.chains import Chains, DataInit
from ebm_lightning.modules.conditional import LRSchedulerCallable, OptimizerCallable
from ebm_lightning.modules.hparams import rebuild
from ebm_lightning.modules.jem import JEM
from ebm_lightning.partition import rbm_class_log_z
from ebm_lightning.samplers import BlockGibbs, Sampler
from ebm_lightning.supports import Binary, Support


class ClassificationRBM(JEM):
    r"""A restricted Boltzmann machine over x, its label and hidden units, trained in the terms of :class:`JEM`.

    .. math::
        f_y(x) = b \cdot x + d_y + \sum_j \mathrm{softplus}(c_j + U_{jy} + (W x)_j), \qquad
        p(y|x) = \mathrm{softmax}(f(x))[y]

    ``conditional_weight`` alone is the paper's discriminative training, ``joint_weight`` alone its generative one, both
    its hybrid. Negatives come from block Gibbs: with ``DataInit`` this is CD-k (k is the sampler's ``steps``), with
    ``ReplayBuffer`` PCD, with ``SupportInit`` short runs. Only the chains are sampled: given them, hidden units and the
    label are summed out. Continuous data take ``support=Gaussian(mean, std, shape)``, the Gaussian-Bernoulli RBM.

    References:
        Larochelle & Bengio, Classification using discriminative restricted Boltzmann machines, 2008.

    Arguments:
        num_visible: V, the number of components of x.
        num_hidden: H.
        num_classes: K.
        support: ``Binary(shape)`` or ``Gaussian(mean, std, shape)``; ``Binary((num_visible,))`` by default. Grey pixels
            are refused unless it is ``Binary(shape, probabilities=True)``.
        sampler: ``BlockGibbs(1)`` by default.
        chains: Where negatives start; ``DataInit()`` by default.
        conditional_weight: Weight of -log p(y|x).
        generative_weight: Weight of -log p(x).
        joint_weight: Weight of -log p(x, y); 0.01 as in the paper's hybrid.
        class_conditional_weight: Weight of -log p(x|y).
        exact_gradient: Sum over all states in place of chains: the true likelihood and its gradient, for small models.
        optimizer: Makes the optimiser from the parameters.
        lr_scheduler: Makes the schedule from the optimiser; it is stepped after every optimiser step.
        seed: Of the chains, as for :class:`JEM`.

    Raises:
        ValueError: A number below 1, a support of another kind, a negative weight, ``exact_gradient`` with too many
            states to sum, and whatever :class:`JEM` raises.
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
        conditional_weight: float = 1.0,
        generative_weight: float = 0.0,
        joint_weight: float = 0.01,
        class_conditional_weight: float = 0.0,
        exact_gradient: bool = False,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int | None = None,
    ) -> None:
        support = rebuild(support, Support, "support") or Binary((num_visible,))
        sampler = rebuild(sampler, Sampler, "sampler") or BlockGibbs()
        chains = rebuild(chains, Chains, "chains") or DataInit()
        super().__init__(
            RBMLogits(num_visible, num_hidden, num_classes, support),
            num_classes,
            support,
            sampler,
            chains,
            conditional_weight=conditional_weight,
            generative_weight=generative_weight,
            joint_weight=joint_weight,
            class_conditional_weight=class_conditional_weight,
            energy_l2=0.0,  # block Gibbs follows any energy
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            seed=seed,
        )
        self.exact_gradient = exact_gradient
        if exact_gradient:
            with torch.no_grad():
                rbm_class_log_z(self.rbm)  # complains now, not in the first batch

    @property
    def rbm(self) -> RBMLogits:
        """The classifier, with its conditionals."""
        assert isinstance(self.classifier, RBMLogits)
        return self.classifier

    def loss_terms(
        self, x: Tensor, y: Tensor, x_gen: Tensor | None = None, y_gen: Tensor | None = None
    ) -> dict[str, tuple[float, Tensor]]:
        self.rbm.observe(x, y)
        return super().loss_terms(x, y, x_gen, y_gen)

    def generative_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """As for JEM; with ``exact_gradient`` its value is the weighted negative log-likelihood itself, in nats."""
        return self._exact_loss(x, y) if self.exact_gradient else super().generative_loss(x, y)

    def _exact_loss(self, x: Tensor, y: Tensor) -> Tensor:
        logits, log_z_y = self.energy.logits(x), rbm_class_log_z(self.rbm)
        energy, energy_y = self.energy.from_logits(logits, x), self.energy.from_logits(logits, x, y)
        log_z = log_z_y.logsumexp(0)
        loss = self.generative_weight * (energy + log_z).mean() + self.joint_weight * (energy_y + log_z).mean()
        return (loss + self.class_conditional_weight * (energy_y + log_z_y[y]).mean()).to(energy.dtype)
