"""A classifier as a conditional energy model: trained by cross-entropy, with energies and scores."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from ebm_lightning.coordinates import Coordinates
from ebm_lightning.modules.batches import Batch, BatchKeys, check_has_labels, has_two_parts, with_labels
from ebm_lightning.modules.energy_module import EnergyModule
from ebm_lightning.modules.fit_coordinates import fit_coordinates
from ebm_lightning.modules.fit_densities import fit_densities
from ebm_lightning.modules.lr_schedules import (
    LRSchedulerCallable,
    OptimizerCallable,
    configure_optimizers,
    schedule_and_config,
)
from ebm_lightning.resume.hparams import rebuild
from ebm_lightning.supports import Support

Terms = dict[str, tuple[float, Tensor]]
"""Weight and value of each term of a loss, by its name."""


class ConditionalEBM(EnergyModule):
    r"""Any classifier, trained by cross-entropy, that also gives E(x), E(x, y) and out-of-distribution scores.

    .. math:: -\log p(y|x) = E(x, y) - E(x) = -f(x)[y] + \log \sum_{y'} e^{f(x)[y']}

    Z and the reference density cancel, so training needs no sampling. Predictions are bit-equal to the classifier's.
    Batches are (x, y) with class indices (N,) or probabilities (N, K), or dictionaries such as ``{"pixel_values": x,
    "labels": y}``. A training batch may also be ``{"clf": (x, y), "gen": x}``, or with labels in the second part, which
    is for the generative terms of a :class:`JEM` and is ignored here. Batches of inputs alone can be validated, tested
    and predicted. Each of several loaders gets its own metrics. ``self.energy`` is the
    :class:`~ebm_lightning.energies.JointEnergy`. It and the module itself, called as functions, use the current mode:
    after ``fit`` that is train mode, in which batch norm makes E(x) depend on the batch. Call ``eval()`` first, or use
    the methods that do so by themselves, such as :meth:`score` and :meth:`sample`.

    References:
        Grathwohl et al. 2020, sec. 3. https://arxiv.org/abs/1912.03263

    Arguments:
        classifier: Maps (N, *shape) to logits (N, K).
        num_classes: K, at least 2.
        support: Domain of x, against which batches are checked; all of R^D by default. With coordinates, the domain of
            u, by default their own.
        optimizer: Makes the optimizer from the parameters, such as ``functools.partial(torch.optim.Adam, lr=1e-3)``.
        lr_scheduler: Makes the learning-rate schedule from the optimizer. It is stepped after every optimizer step.
        lr_scheduler_config: What else Lightning should know of it, such as ``{"interval": "epoch"}``, or ``{"monitor":
            "val/nll"}`` for ReduceLROnPlateau, which is stepped after every epoch. Both in one dictionary, as Lightning
            has it, are taken too.
        coordinates: Invertible map u = T(x), such as ``Quantiles(Box(-1, 1, (1, 28, 28)), 256)``. The classifier sees u
            and chains move in u; batches, energies, scores and samples are of x. ``fit`` fits it to the training data
            if it is not fitted yet. One of a checkpoint is not fitted again.
        batch_keys: Where batches hold inputs and labels if they have another form, such as ``("image", "species")``, or
            ``(0, 2)`` for tuples. For anything else override :meth:`inputs_and_labels`.

    Raises:
        ValueError: ``num_classes`` is below 2. At the first batch: inputs outside the support, NaN, wrong shapes,
            labels outside the classes, or a classifier whose output is not (N, num_classes).
        RuntimeError: During training, if the loss is not finite.
    """

    halts_on_divergence = True  # a DivergenceGuard sets it to False and handles divergence itself

    def __init__(
        self,
        classifier: nn.Module,
        num_classes: int,
        support: Support | None = None,
        *,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_config: Mapping[str, Any] | None = None,
        coordinates: Coordinates | None = None,
        batch_keys: BatchKeys | None = None,
    ) -> None:
        super().__init__(classifier, num_classes, support, coordinates=coordinates, batch_keys=batch_keys)
        self.optimizer = rebuild(optimizer, torch.optim.Optimizer, "optimizer", partial=True)
        scheduler, self.lr_scheduler_config = schedule_and_config(lr_scheduler, lr_scheduler_config)
        self.lr_scheduler = rebuild(scheduler, torch.optim.lr_scheduler.LRScheduler, "lr_scheduler", partial=True)

    # The loss: override these.

    def conditional_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """-log p(y|x), mean over the batch, in nats, from logits (N, K) and labels (N,) or probabilities (N, K)."""
        return F.cross_entropy(logits, y)

    def loss_terms(self, x: Tensor, y: Tensor) -> Terms:
        """The weight and value of each term of the loss. Term ``t`` is logged as ``train/loss_t``."""
        return {"clf": (1.0, self.conditional_loss(self.checked_logits(x), y))}

    def compute_loss(self, *batch: Tensor) -> tuple[Tensor, Terms]:
        """The weighted sum of the terms of the loss, and the terms.

        Raises:
            ValueError: The loss is not finite, because of the batch.
            RuntimeError: The loss is not finite, and no DivergenceGuard handles it.
        """
        terms = self.loss_terms(*batch)
        loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
        inside = torch.stack([self.domain.contains(x).all() for x in batch[::2]]).all()
        if not (finite := torch.isfinite(loss)) & inside:  # accelerators are synchronized once, here
            self._check_again(*batch)
            if self.halts_on_divergence and not finite:
                raise RuntimeError(self._divergence_message({name: value for name, (_, value) in terms.items()}))
        return loss, terms

    def _check_again(self, x: Tensor, y: Tensor, x_gen: Tensor | None = None, y_gen: Tensor | None = None) -> None:
        """Check a batch that is outside or gave an infinite loss: accelerators checked the first batch only."""
        self.check_batch(x, y, unlabeled=x_gen is None)
        if x_gen is not None:
            self.check_batch(x_gen, y_gen, unlabeled=True)

    def _divergence_message(self, values: dict[str, Tensor]) -> str:
        terms = ", ".join(f"{name} {value.item():.4g}" for name, value in values.items())
        return (
            f"The loss is not finite at step {self.global_step} ({terms}). No weight was updated with it. "
            "Lower the learning rate."
        )

    # Training batches.

    def checked_batch(self, batch: Any, batch_idx: int) -> Batch:
        """``batch`` as (x, y), checked by :meth:`check_batch`.

        Raises:
            ValueError: It has no labels, or x or y is wrong.
        """
        x, y = self.inputs_and_labels(batch)
        return self._checked((x, check_has_labels(y)), batch_idx, unlabeled=False)

    def generative_batch(self, batch: Any, batch_idx: int) -> Batch:
        """A batch of the generative terms as (x, y): inputs without labels get labels of -1.

        Raises:
            ValueError: x or y is wrong.
        """
        pair = with_labels(*self.inputs_and_labels(batch["gen"] if has_two_parts(batch) else batch))
        return self._checked(pair, batch_idx, unlabeled=True)

    def _checked(self, pair: Batch, batch_idx: int, *, unlabeled: bool) -> Batch:
        if pair[0].device.type == "cpu" or batch_idx == 0:
            self.check_batch(*pair, unlabeled=unlabeled)
        return pair

    def training_batch(self, batch: Any, batch_idx: int) -> tuple[Tensor, ...]:
        """The arguments of :meth:`loss_terms` for a training batch."""
        return self.checked_batch(batch["clf"] if has_two_parts(batch) else batch, batch_idx)

    # Lightning's hooks.

    def prepare_fit(self) -> None:
        fit_coordinates(self)
        if self.generator is None:
            fit_densities(self)
        super().prepare_fit()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        arguments = self.training_batch(batch, batch_idx)
        self._first_look(self, arguments[0])
        loss, terms = self.compute_loss(*arguments)
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/loss_{name}": value for name, (_, value) in terms.items()})
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure_optimizers(self.parameters(), self.optimizer, self.lr_scheduler, self.lr_scheduler_config)
