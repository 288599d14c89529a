"""The joint energy model: a classifier that also learns p(x), by persistent chains of Langevin dynamics."""

import copy
import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from ebm_lightning.chains import Chains, ReplayBuffer
from ebm_lightning.modules.conditional import ConditionalEBM, LRSchedulerCallable, OptimizerCallable, is_split
from ebm_lightning.modules.first_pass import fit_starts
from ebm_lightning.modules.hparams import rebuild
from ebm_lightning.modules.phases import differs_in_training, settled
from ebm_lightning.samplers import SGLD, Compute, Sampler, State, eval_mode
from ebm_lightning.streams import make_generator
from ebm_lightning.supports import Support


class JEM(ConditionalEBM):
    r"""Any classifier, trained on -log p(y|x) and on one or more generative terms.

    .. math::
        -\nabla \log p(x) &= \nabla E(x) - \mathbb{E}_{x' \sim p} \nabla E(x') \\
        -\nabla \log p(x, y) &= \nabla E(x, y) - \mathbb{E}_{x' \sim p} \nabla E(x') \\
        -\nabla \log p(x | y) &= \nabla E(x, y) - \mathbb{E}_{x' \sim p(\cdot | y)} \nabla E(x', y)

    The first two share their chains, since the labels of the joint negative phase sum out. The third runs chains that
    keep their label for life; the published JEM uses it in place of log p(x, y), which is the same only if all Z_y
    are equal. A weight of 0 costs nothing; with all generative weights 0 this is :class:`ConditionalEBM`. Chains and
    the generative term see the classifier in eval mode: batch-norm statistics come from data alone, and the energy
    that is trained is the one that is sampled. With gradient accumulation the sampler runs for every micro-batch.

    References:
        Grathwohl et al. 2020. https://arxiv.org/abs/1912.03263

    Arguments:
        classifier: Maps (N, *shape) to logits (N, K).
        num_classes: K.
        support: Domain of x and reference density; for images in [-1, 1] ``Box(-1, 1, (3, 32, 32))``.
        sampler: Moves the chains. By default ``SGLD.jem()``, for images in [-1, 1].
        chains: Where negatives start. By default ``ReplayBuffer()``.
        conditional_weight: Weight of -log p(y|x).
        generative_weight: Weight of -log p(x).
        joint_weight: Weight of -log p(x, y).
        class_conditional_weight: Weight of -log p(x|y).
        energy_l2: Weight a of the mean squares of both phases' logsumexp (Du & Mordatch 2019); 0.1 is the JEM author's
            advice. It bounds the generative term from below, by -w^2 / 2a for a generative weight w, so that energies
            of data and chains cannot run apart: at temperature 1, training without it explodes. The price is a
            flatter density: take 0 or little where log p(x) itself is wanted and chains follow the energy.
        data_noise: Standard deviation of Gaussian noise added to training data, in units of x (JEM: 0.03). Where p(x)
            has batches of its own, to those alone: noise that chains need blurs what a classifier sees, which takes
            its own from the data module.
        optimizer: Makes the optimiser from the parameters.
        lr_scheduler: Makes the schedule from the optimiser; it is stepped after every optimiser step.
        compute: Precision, layout and compilation of the network while chains move, such as ``Compute.auto()``; the
            loss itself is computed as the trainer has it. By default chains are computed likewise.
        seed: Of the chains; by default PyTorch's initial seed, which ``seed_everything`` sets. Each rank has its own
            stream.

    Raises:
        ValueError: A negative weight, all weights 0, and whatever :class:`ConditionalEBM` raises.
    """

    def __init__(
        self,
        classifier: nn.Module,
        num_classes: int,
        support: Support,
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
        compute: Compute | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(classifier, num_classes, support, optimizer=optimizer, lr_scheduler=lr_scheduler)
        self.sampler: Sampler = rebuild(sampler, Sampler, "sampler") or SGLD.jem()
        self.note_hyperparameters(implied_temperature=self.sampler.implied_temperature)
        self.conditional_weight = conditional_weight
        self.generative_weight = generative_weight
        self.joint_weight = joint_weight
        self.class_conditional_weight = class_conditional_weight
        self.energy_l2 = energy_l2
        self.data_noise = data_noise
        self._check_weights()
        self.chains: Chains = rebuild(chains, Chains, "chains") or ReplayBuffer()
        self.class_chains = copy.deepcopy(self.chains)
        self.class_chains.start = self.chains.start  # fitted once, for both
        self.compute: Compute | None = rebuild(compute, Compute, "compute")
        self.seed = seed
        self._shared: Tensor | None = None
        self._shared_logits: Tensor | None = None
        self.last_move: State | None = None
        self.last_energies: tuple[Tensor, Tensor] | None = None
        self._last_slots: tuple[Chains, Tensor | None] | None = None

    # The terms of the loss: override these.

    def loss_terms(
        self, x: Tensor, y: Tensor, x_gen: Tensor | None = None, y_gen: Tensor | None = None
    ) -> dict[str, tuple[float, Tensor]]:
        """As for :class:`ConditionalEBM`; the generative terms take ``x_gen`` and ``y_gen`` where they are given."""
        terms: dict[str, tuple[float, Tensor]] = {}
        running, whole = bool(self.running_chains()), x_gen is None
        if self.conditional_weight and running and whole and not differs_in_training(self.classifier):
            return self._shared_terms(x, y)
        if self.conditional_weight:
            terms["clf"] = (self.conditional_weight, self.conditional_loss(x, y))
        if running:
            terms["gen"] = (1.0, self.generative_loss(x if x_gen is None else x_gen, y if y_gen is None else y_gen))
        return terms

    def generative_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The weighted sum of the generative terms, mean over the batch, up to their log Z.

        Its gradient is that of the negative log-likelihoods; its value says nothing about convergence.
        """
        loss = x.new_zeros(())
        if self.generative_weight or self.joint_weight:
            loss = loss + self._marginal_chains_loss(x, y)
        if self.class_conditional_weight:
            loss = loss + self._class_chains_loss(x, y)
        return loss

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (N, K); once for all terms of a loss that share the batch."""
        if self._shared is None or x is not self._shared:
            return super().forward(x)
        if self._shared_logits is None:
            self._shared_logits = super().forward(x)
        return self._shared_logits

    def negatives(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """One negative for each row of ``x``, detached: from p(x), or from p(x|y) where ``y`` is given."""
        chains = self.chains if y is None else self.class_chains
        energy = self.energy if y is None else functools.partial(self.energy, y=y)
        start, index = chains.draw(len(x), y, self.generator, data=x)
        self.last_move = self.sampler.run(
            energy, start, support=self.support, generator=self.generator, compute=self.compute
        )
        chains.store(index, self.last_move.x)
        self._last_slots = chains, index
        return self.last_move.x

    def restart_chains(self, attempt: int, factor: float = 1.0) -> None:
        """After a divergence: the chains that moved last start anew, the sampler is reseeded and its step shortened.

        Arguments:
            attempt: Numbers the stream of random numbers: never twice the same.
            factor: By which the sampler's step is multiplied; the law that it aims at stays.
        """
        self.generator = self._make_generator("chains", attempt)
        if self._last_slots is not None:
            chains, index = self._last_slots
            chains.restart(index, self.generator)
        if factor != 1:
            self.sampler = self.sampler.shortened(factor)

    # Lightning's hooks.

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.last_energies is not None:
            energy_pos, energy_neg = self.last_energies
            self.log_dict({"train/energy_pos": energy_pos, "train/energy_neg": energy_neg}, prog_bar=True)
        return loss

    def on_fit_start(self) -> None:
        if self.generator is None:
            fit_starts(self)
            self.start_chains()
        super().on_fit_start()

    def start_chains(self) -> None:
        """Seed this rank's generator and start its chains. ``fit`` does it; a training loop of your own has to."""
        self.generator = self._make_generator("chains")
        for name, chains in self.running_chains().items():
            num_classes = self.num_classes if name == "class_chains" else None
            chains.setup(self.support, num_classes, self.generator)

    # What the terms are made of.

    def _shared_terms(self, x: Tensor, y: Tensor) -> dict[str, tuple[float, Tensor]]:
        """Both terms from one forward pass of the data, for a network that is in train mode what it is in eval mode."""
        self._shared = x
        try:
            gen = self.generative_loss(x, y)  # first, so that no graph is kept while chains move
            return {"clf": (self.conditional_weight, self.conditional_loss(x, y)), "gen": (1.0, gen)}
        finally:
            self._shared = self._shared_logits = None

    def _marginal_chains_loss(self, x: Tensor, y: Tensor) -> Tensor:
        weight = self.generative_weight + self.joint_weight
        logits, negative, energy_neg = self._two_phases(x, self.negatives(x), None, weight)
        energy_pos = self.energy.from_logits(logits, x)
        self._watch(energy_pos, energy_neg)
        loss = self.generative_weight * energy_pos.mean() + negative + self._l2(logits)
        if self.joint_weight:
            loss = loss + self.joint_weight * self.energy.from_logits(logits, x, y).mean()
        return loss

    def _class_chains_loss(self, x: Tensor, y: Tensor) -> Tensor:
        weight = self.class_conditional_weight
        logits, negative, energy_neg = self._two_phases(x, self.negatives(x, y), y, weight)
        energy_pos = self.energy.from_logits(logits, x, y)
        self._watch(energy_pos, energy_neg)
        return weight * energy_pos.mean() + negative + self._l2(logits)

    def _two_phases(self, x: Tensor, x_neg: Tensor, y: Tensor | None, weight: float) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the data, the negatives' part of the loss, and their energies E(x) or E(x, y)."""
        shared = x is self._shared
        with eval_mode(self.energy):
            logits_neg = self.energy.logits(x_neg if shared else torch.cat([x, x_neg]))
        if not shared:
            logits, logits_neg = logits_neg.chunk(2)
        energy_neg = self.energy.from_logits(logits_neg, x_neg, y)
        negative = self._l2(logits_neg) - weight * energy_neg.mean()
        energy_neg = energy_neg.detach()
        if shared:
            negative = settled(negative, self.energy)
            del logits_neg  # and with it the graph, before there is another
            logits = self(x)
        return logits, negative, energy_neg

    def _l2(self, logits: Tensor) -> Tensor:
        return self.energy_l2 * logits.logsumexp(1).square().mean() if self.energy_l2 else logits.new_zeros(())

    def _watch(self, energy_pos: Tensor, energy_neg: Tensor) -> None:
        self.last_energies = energy_pos.detach().mean(), energy_neg.detach().mean()

    def _training_batch(self, batch: Any, batch_idx: int) -> tuple[Tensor, ...]:
        if not is_split(batch):
            x, y = self._checked(batch, batch_idx)
            return self._noisy(x), y
        x, y = self._checked(batch["clf"], batch_idx)
        x_gen, y_gen = self._checked(batch["gen"], batch_idx)
        return x, y, self._noisy(x_gen), y_gen

    def _noisy(self, x: Tensor) -> Tensor:
        if not self.data_noise:
            return x
        noise = torch.randn(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)
        return self.support.reflect(x + self.data_noise * noise)

    def _make_generator(self, *stream: str | int) -> torch.Generator:
        """This rank's, for the stream of that name."""
        seed = torch.initial_seed() if self.seed is None else self.seed
        return make_generator(seed, self.global_rank, *stream, device=self.device)

    def _check_weights(self) -> None:
        names = ("conditional_weight", "generative_weight", "joint_weight", "class_conditional_weight")
        for name in (*names, "energy_l2", "data_noise"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"'{name}' should be 0 or positive, got {getattr(self, name)}.")
        if not any(getattr(self, name) for name in names):
            raise ValueError("'conditional_weight' or a generative weight should be positive, got 0 for all of them.")

    def running_chains(self) -> dict[str, Chains]:
        needed = {
            "chains": self.generative_weight or self.joint_weight,
            "class_chains": self.class_conditional_weight,
        }
        return {name: getattr(self, name) for name, weight in needed.items() if weight}

    def _blow_up(self, values: dict[str, Tensor]) -> str:
        energy_pos, energy_neg = self.last_energies or (math.nan, math.nan)
        return (
            f"{super()._blow_up(values)} The last mean energies were {float(energy_pos):.4g} of data and "
            f"{float(energy_neg):.4g} of negatives: if they ran apart, lower the sampler's 'step_size' or raise its "
            "'steps', set 'energy_l2' to 0.1, or clip gradients."
        )
