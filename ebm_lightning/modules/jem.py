"""The joint energy model (JEM): the loss of a classifier that also learns p(x). Its chains are in ``chain_ebm.py``."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ebm_lightning.chains import Chains
from ebm_lightning.checks import check_number
from ebm_lightning.coordinates import Coordinates
from ebm_lightning.energies import tilt_of
from ebm_lightning.modules.batches import BatchKeys, check_classes, has_two_parts
from ebm_lightning.modules.chain_ebm import ChainEBM
from ebm_lightning.modules.conditional import Terms
from ebm_lightning.modules.lr_schedules import LRSchedulerCallable, OptimizerCallable
from ebm_lightning.modules.precompute_gradient import differs_in_training, precompute_gradient
from ebm_lightning.samplers import Adaptation, Compute, Sampler, eval_mode
from ebm_lightning.supports import Support


class JEM(ChainEBM):
    r"""Any classifier, trained on -log p(y|x) and on one or more generative terms.

    .. math::
        -\nabla \log p(x) &= \nabla E(x) - \mathbb{E}_{x' \sim p} \nabla E(x') \\
        -\nabla \log p(x, y) &= \nabla E(x, y) - \mathbb{E}_{x' \sim p} \nabla E(x') \\
        -\nabla \log p(x | y) &= \nabla E(x, y) - \mathbb{E}_{x' \sim p(\cdot | y)} \nabla E(x', y)

    The first two use the same chains, because the labels of the joint negative phase sum out. The third uses chains
    that keep their label for life; the published JEM uses it instead of log p(x, y), which is equivalent only if all
    Z_y are equal. A term of weight 0 costs nothing; with all generative weights 0 this is :class:`ConditionalEBM`.
    Chains and generative terms use the classifier in eval mode: batch-norm statistics come from data only, and the
    energy that is trained is the one that is sampled. With gradient accumulation the sampler runs for every
    micro-batch.

    With batches ``{"clf": (x, y), "gen": x}``, the second part is unlabeled and feeds -log p(x) only. Labels of -1 in
    it mean the same. Without a conditional term, batches may be inputs without labels. With soft labels (N, K), as of
    MixUp, the joint and class-conditional terms need a second part with classes.

    References:
        Grathwohl et al. 2020. https://arxiv.org/abs/1912.03263

    Arguments:
        classifier: Maps (N, *shape) to logits (N, K).
        num_classes: K.
        support: Domain of x and reference density; for images in [-1, 1] ``Box(-1, 1, (3, 32, 32))``. With coordinates,
            those of u, by default their own.
        sampler: Moves the chains. By default ``SGLD.jem()``, for images in [-1, 1].
        chains: Where negatives start. By default ``ReplayBuffer()``.
        conditional_weight: Weight of -log p(y|x).
        generative_weight: Weight of -log p(x).
        joint_weight: Weight of -log p(x, y).
        class_conditional_weight: Weight of -log p(x|y).
        energy_l2: Weight a of the mean squared logsumexp of data and negatives (Du & Mordatch 2019); JEM's author
            recommends 0.1. It bounds the generative term from below, by -w^2 / 2a for a generative weight w, so that
            the energies of data and chains cannot diverge: at temperature 1, training without it explodes. The cost is
            a flatter density: use 0 or a small value to estimate log p(x) itself with chains that follow the energy.
        data_noise: Standard deviation of Gaussian noise added to training data, in units of x (JEM: 0.03). If the
            generative terms have separate batches, only those get it: chains need this noise, but it blurs the
            classifier's inputs. Noise for the classifier is set in the data module.
        optimizer, lr_scheduler, lr_scheduler_config, batch_keys: As for :class:`ConditionalEBM`.
        compute: Precision, memory layout and compilation of the network while chains move, such as
            ``Compute.auto()``. By default the same as for the loss, which the trainer sets.
        seed: Seed of the chains; by default PyTorch's initial seed, which ``seed_everything`` sets. Each rank has a
            separate stream.
        coordinates: As for :class:`ConditionalEBM`: the fitted map to the u in which chains move.
        adaptation: Adapts the step size of MALA or HMC to an acceptance rate, and runs chains longer that are behind.

    Raises:
        ValueError: A negative weight, all weights 0, or an error of :class:`ConditionalEBM`.
    """

    def __init__(
        self,
        classifier: nn.Module,
        num_classes: int,
        support: Support | None = None,
        sampler: Sampler | None = None,
        chains: Chains | None = None,
        *,
        conditional_weight: float = 1.0,
        generative_weight: float = 1.0,
        joint_weight: float = 0.0,
        class_conditional_weight: float = 0.0,
        energy_l2: float = 0.1,
        data_noise: float = 0.0,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_config: Mapping[str, Any] | None = None,
        compute: Compute | None = None,
        seed: int | None = None,
        coordinates: Coordinates | None = None,
        adaptation: Adaptation | None = None,
        batch_keys: BatchKeys | None = None,
    ) -> None:
        super().__init__(
            classifier,
            num_classes,
            support,
            sampler,
            chains,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_scheduler_config=lr_scheduler_config,
            compute=compute,
            seed=seed,
            coordinates=coordinates,
            adaptation=adaptation,
            batch_keys=batch_keys,
        )
        self.conditional_weight: float = check_number("conditional_weight", conditional_weight, at_least=0)
        self.generative_weight: float = check_number("generative_weight", generative_weight, at_least=0)
        self.joint_weight: float = check_number("joint_weight", joint_weight, at_least=0)
        self.class_conditional_weight: float = check_number(
            "class_conditional_weight", class_conditional_weight, at_least=0
        )
        self.energy_l2: float = check_number("energy_l2", energy_l2, at_least=0)
        self.data_noise: float = check_number("data_noise", data_noise, at_least=0)
        if not (conditional_weight or generative_weight or joint_weight or class_conditional_weight):
            raise ValueError("'conditional_weight' or a generative weight should be positive, got 0 for all of them.")

    def running_chains(self) -> dict[str, Chains]:
        needed = {"chains": self.generative_weight or self.joint_weight, "class_chains": self.class_conditional_weight}
        return {name: getattr(self, name) for name, weight in needed.items() if weight}

    # The loss, from top to bottom: override any of these, or ``negatives``, which moves the chains.

    def loss_terms(self, x: Tensor, y: Tensor, x_gen: Tensor | None = None, y_gen: Tensor | None = None) -> Terms:
        """The weight and value of each term of the loss. Term ``t`` is logged as ``train/loss_t``.

        The generative term has the gradient of the weighted negative log-likelihoods, but its value says nothing about
        convergence. One forward pass serves both terms if they have the same batch and the network behaves identically
        in train and eval mode.

        Arguments:
            x: Inputs of the conditional term, shape (N, *shape).
            y: Their labels, shape (N,).
            x_gen: Inputs of the generative terms, shape (M, *shape); by default ``x``.
            y_gen: Their labels, shape (M,).
        """
        if not self.running_chains():
            return {"clf": (self.conditional_weight, self.conditional_loss(self.checked_logits(x), y))}
        one_pass = x_gen is None and not differs_in_training(self.classifier)
        if x_gen is None or y_gen is None:
            x_gen, y_gen = x, y
        clf = None
        if self.conditional_weight and not one_pass:
            # Before the passes in eval mode: their backward reads batch-norm statistics, which this pass changes.
            clf = precompute_gradient(self.conditional_loss(self.checked_logits(x), y), self)
        u = self.coordinates(x_gen)
        negative = self.negative_phase(u, y_gen)  # before other graphs exist: chains need the memory
        with nullcontext() if one_pass else eval_mode(self.energy):
            logits = self._logits(u)
        gen = self.positive_phase(logits, u, y_gen) + negative
        if self.conditional_weight and one_pass:
            clf = self.conditional_loss(logits, y)
        return ({} if clf is None else {"clf": (self.conditional_weight, clf)}) | {"gen": (1.0, gen)}

    def positive_phase(self, logits: Tensor, u: Tensor, y: Tensor) -> Tensor:
        """Weighted energies of the data, mean over the batch: what training lowers.

        Energies are relative to the reference density, E(x) + log q(x), which has the same gradient and varies less.

        Arguments:
            logits: Logits of the data in eval mode, shape (N, K).
            u: The data in coordinates, shape (N, *shape): x itself by default.
            y: Labels, shape (N,).
        """
        energy = -tilt_of(logits)
        loss = self.generative_weight * energy.mean() + len(self.running_chains()) * self._l2(logits)
        if self.joint_weight or self.class_conditional_weight:
            energy_y = -tilt_of(logits, y)
            loss = loss + (self.joint_weight + self.class_conditional_weight) * energy_y.mean()
            energy = energy_y if self.class_conditional_weight else energy
        if self.chain_step is not None:
            self.chain_step.energy_pos = energy.detach().mean()
        return loss

    def negative_phase(self, u: Tensor, y: Tensor) -> Tensor:
        """Minus the weighted energies of the negatives, mean over the batch: training raises these energies.

        Arguments:
            u: The data in coordinates, shape (N, *shape); one chain moves for each row.
            y: Labels, shape (N,), for chains of p(x|y).
        """
        loss = u.new_zeros(())
        if self.generative_weight or self.joint_weight:
            loss = loss + self._negative_phase(self.negatives(u), None, self.generative_weight + self.joint_weight)
        if self.class_conditional_weight:
            loss = loss + self._negative_phase(self.negatives(u, y), y, self.class_conditional_weight)
        return loss

    def _negative_phase(self, u_neg: Tensor, y: Tensor | None, weight: float) -> Tensor:
        with eval_mode(self.energy):
            logits = self.chain_energy.logits(u_neg)
        log_tilt = tilt_of(logits, y)
        outside = ~self.support.contains(u_neg)  # a sampler that leaves the support is at fault
        energy = (-log_tilt).masked_fill(outside, math.inf).mean()
        if self.chain_step is not None:
            self.chain_step.chains.remember(self.chain_step.index, log_tilt)
            self.chain_step.energy_neg = energy.detach()
        return precompute_gradient(self._l2(logits) - weight * energy, self.energy)

    def _l2(self, logits: Tensor) -> Tensor:
        return self.energy_l2 * logits.logsumexp(1).square().mean() if self.energy_l2 else logits.new_zeros(())

    def _divergence_message(self, values: dict[str, Tensor]) -> str:
        step = self.chain_step
        energies = (None, None) if step is None else (step.energy_pos, step.energy_neg)
        pos, neg = (math.nan if energy is None else float(energy) for energy in energies)
        return (
            f"{super()._divergence_message(values)} The last mean energies were {pos:.4g} of data and "
            f"{neg:.4g} of negatives: if they diverged, lower the sampler's 'step_size' or raise its "
            "'steps', set 'energy_l2' to 0.1, or clip gradients."
        )

    # Training batches.

    def training_batch(self, batch: Any, batch_idx: int) -> tuple[Tensor, ...]:
        if not has_two_parts(batch):
            x, y = (self.checked_batch if self.conditional_weight else self.generative_batch)(batch, batch_idx)
            self._check_classes(y, batch_idx)
            return self._noisy(x), y
        x, y = self.checked_batch(batch["clf"], batch_idx)
        x_gen, y_gen = self.generative_batch(batch["gen"], batch_idx)
        self._check_classes(y_gen, batch_idx)
        return x, y, self._noisy(x_gen), y_gen

    def _check_classes(self, y: Tensor, batch_idx: int) -> None:
        if self.joint_weight or self.class_conditional_weight:
            check_classes(y, values=y.device.type == "cpu" or batch_idx == 0)

    def _noisy(self, x: Tensor) -> Tensor:
        if not self.data_noise:
            return x
        noise = torch.randn(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)
        return self.domain.reflect(x + self.data_noise * noise)
