"""A classifier as a conditional energy model: trained by cross-entropy, and an energy all along."""

import copy
import inspect
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from ebm_lightning.chains import Chains
from ebm_lightning.energies import JointEnergy
from ebm_lightning.modules.hparams import describe, rebuild
from ebm_lightning.modules.progress import settle_progress
from ebm_lightning.modules.resume import RankState, deal_random_state, deal_ranks, gather_ranks, same_keys
from ebm_lightning.modules.safeguards import Safeguards
from ebm_lightning.supports import Euclidean, Support

Batch = tuple[Tensor, Tensor]
OptimizerCallable = Callable[[Iterable[Any]], torch.optim.Optimizer]
LRSchedulerCallable = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


class ConditionalEBM(L.LightningModule):
    r"""Any classifier, trained by cross-entropy, that also gives E(x), E(x, y) and out-of-distribution scores.

    .. math:: -\log p(y|x) = E(x, y) - E(x) = -f(x)[y] + \log \sum_{y'} e^{f(x)[y']}

    Z and the reference density cancel, so nothing is sampled. Predictions are those of the classifier, bit for bit.
    Batches are (x, y) with integer labels; a training batch may also be ``{"clf": (x, y), "gen": (x, y)}``, of which
    the second serves the generative terms of a :class:`JEM` and is left alone here. ``self.energy`` is the
    :class:`~ebm_lightning.energies.JointEnergy`.

    References:
        Grathwohl et al. 2020, sec. 3. https://arxiv.org/abs/1912.03263

    Arguments:
        classifier: Maps (N, *shape) to logits (N, K).
        num_classes: K, at least 2.
        support: Domain of x; batches are checked against it. By default all of R^D, where anything finite goes.
        optimizer: Makes the optimiser from the parameters, such as ``functools.partial(torch.optim.Adam, lr=1e-3)``.
        lr_scheduler: Makes the schedule from the optimiser; it is stepped after every optimiser step.

    Raises:
        ValueError: ``num_classes`` below 2. At the first batch: images outside the support, NaN, wrong shapes, labels
            that are no classes, a classifier whose output is not (N, num_classes).
        RuntimeError: While training, if the loss is not finite.
    """

    halts_on_divergence = True  # False while a DivergenceGuard looks after the run

    def __init__(
        self,
        classifier: nn.Module,
        num_classes: int,
        support: Support | None = None,
        *,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"'num_classes' should be at least 2, got {num_classes}.")
        support = rebuild(support, Support, "support")
        self.energy = JointEnergy(rebuild(classifier, nn.Module, "classifier"), support or Euclidean())
        self.save_hyperparameters()
        self.num_classes = num_classes
        self.optimizer = rebuild(optimizer, torch.optim.Optimizer, "optimizer", partial=True)
        self.lr_scheduler = rebuild(lr_scheduler, torch.optim.lr_scheduler.LRScheduler, "lr_scheduler", partial=True)
        self.generator: torch.Generator | None = None
        self._saved_ranks: list[RankState] | None = None
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    @property
    def classifier(self) -> nn.Module:
        return self.energy.classifier

    @property
    def support(self) -> Support:
        return self.energy.support

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (N, K)."""
        logits: Tensor = self.energy.logits(x)
        if logits.shape[1] != self.num_classes:
            raise ValueError(
                f"'num_classes' should be the number of logits, got {self.num_classes} for a classifier with "
                f"{logits.shape[1]}. Change one of them."
            )
        return logits

    # The terms of the loss: override these.

    def conditional_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """-log p(y|x), mean over the batch, in nats."""
        return F.cross_entropy(self(x), y)

    def loss_terms(self, x: Tensor, y: Tensor) -> dict[str, tuple[float, Tensor]]:
        """The weight and value of each term of the loss; term ``t`` is logged as ``train/loss_t``."""
        return {"clf": (1.0, self.conditional_loss(x, y))}

    def compute_loss(self, *batch: Tensor) -> tuple[Tensor, dict[str, tuple[float, Tensor]]]:
        """The weighted sum of the terms of the loss, and the terms.

        Raises:
            RuntimeError: It is not finite, and no DivergenceGuard looks after that.
        """
        terms = self.loss_terms(*batch)
        loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
        if self.halts_on_divergence and not torch.isfinite(loss):
            raise RuntimeError(self._blow_up({name: value for name, (_, value) in terms.items()}))
        return loss, terms

    # Lightning's hooks.

    def check_batch(self, x: Tensor, y: Tensor | None = None) -> None:
        """Raises ValueError, with the remedy, unless x is in the support and y holds classes.

        Every step calls it: for each batch on the CPU, for the first on an accelerator, which would have to wait.
        """
        self.support.check(x)
        if y is None:
            return
        if torch.is_floating_point(y) or y.shape != x.shape[:1]:
            raise ValueError(
                f"'y' should be integer labels of shape ({len(x)},), got {y.dtype} of shape {tuple(y.shape)}. "
                "Use class indices, not one-hot or float targets."
            )
        if y.numel() and not 0 <= int(y.min()) <= int(y.max()) < self.num_classes:
            raise ValueError(
                f"'y' should be labels from 0 to {self.num_classes - 1}, got {int(y.min())} to {int(y.max())}. "
                "Renumber the labels or change 'num_classes'."
            )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, terms = self.compute_loss(*self._training_batch(batch, batch_idx))
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/loss_{name}": value for name, (_, value) in terms.items()})
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(self._checked(batch, batch_idx), "val", self.val_accuracy)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(self._checked(batch, batch_idx), "test", self.test_accuracy)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Logits (N, K) and energies E(x) (N,)."""
        x = batch if isinstance(batch, Tensor) else batch[0]
        if x.device.type == "cpu" or batch_idx == 0:
            self.check_batch(x)
        return self._outputs(x)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"},
        }

    # What makes a run go on exactly where it stopped, see resume.py and safeguards.py.

    def running_chains(self) -> dict[str, Chains]:
        """The chains that some weight needs, by the names of their attributes. None here."""
        return {}

    def configure_callbacks(self) -> list[L.Callback]:
        # Lightning's connector gives the trainer this attribute, where type checkers do not see it.
        there = any(isinstance(c, Safeguards) for c in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [] if there else [Safeguards()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ranks"] = gather_ranks(self.trainer, self.running_chains(), self.generator, self.device)
        settle_progress(checkpoint, self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name in {"state_dict", "current_model_state"} & checkpoint.keys():
            checkpoint[name] = same_keys(checkpoint[name], self)
        self._saved_ranks = checkpoint.get("ranks")

    def on_fit_start(self) -> None:
        if self._saved_ranks:
            deal_ranks(self._saved_ranks, self.trainer, self.running_chains(), self.generator)
            # Training data is asked for next, and may take its seed from PyTorch's.
            self._deal_random_state(self._saved_ranks)

    def on_train_start(self) -> None:
        if self._saved_ranks:
            # Again: loaders have drawn since, and from here to the first batch nothing does.
            self._deal_random_state(self._saved_ranks)
        self._saved_ranks = None

    def _deal_random_state(self, ranks: list[RankState]) -> None:
        # Weights and chains may also come from load_from_checkpoint, for a run that is new.
        if self.trainer.ckpt_path:
            deal_random_state(ranks, self.trainer, self.device)

    def save_hyperparameters(
        self, *args: Any, ignore: Any = None, frame: FrameType | None = None, logger: bool = True
    ) -> None:
        """Lightning's own, with objects described in plain values, so that ``weights_only=True`` loads them."""
        here = inspect.currentframe()
        frame = frame or (here.f_back if here else None)
        # Lightning would copy a classifier; here its description is enough.
        ignore = ["classifier", *([ignore] if isinstance(ignore, str) else ignore or [])]
        super().save_hyperparameters(*args, ignore=ignore, frame=frame, logger=logger)
        described = {name: describe(value) for name, value in self.hparams.items()}
        self.note_hyperparameters(**(described | {"classifier": describe(self.classifier)}))

    def note_hyperparameters(self, **derived: Any) -> None:
        """Add figures that follow from the arguments to those that loggers show."""
        self.hparams.update(derived)
        self._hparams_initial = copy.deepcopy(self.hparams)

    def _evaluate(self, batch: Batch, stage: Literal["val", "test"], accuracy: MulticlassAccuracy) -> dict[str, Tensor]:
        x, y = batch
        outputs = self._outputs(x)
        accuracy(outputs["logits"], y)
        self.log(f"{stage}/accuracy", accuracy, prog_bar=True, batch_size=len(x), sync_dist=True)
        self.log(f"{stage}/nll", F.cross_entropy(outputs["logits"], y), batch_size=len(x), sync_dist=True)
        self.log(f"{stage}/energy", outputs["energy"].mean(), batch_size=len(x), sync_dist=True)
        return outputs

    def _outputs(self, x: Tensor) -> dict[str, Tensor]:
        logits = self(x)
        return {"logits": logits, "energy": self.energy.from_logits(logits, x)}

    def _training_batch(self, batch: Any, batch_idx: int) -> tuple[Tensor, ...]:
        """What :meth:`loss_terms` takes."""
        return self._checked(batch["clf"] if is_split(batch) else batch, batch_idx)

    def _checked(self, batch: Any, batch_idx: int) -> Batch:
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            raise ValueError(
                f"'batch' should be (x, y), or in training a dictionary of two such pairs, 'clf' and 'gen', got "
                f"{type(batch).__name__}. Change what the loader yields."
            )
        x, y = batch
        if x.device.type == "cpu" or batch_idx == 0:
            self.check_batch(x, y)
        return x, y

    def _blow_up(self, values: dict[str, Tensor]) -> str:
        terms = ", ".join(f"{name} {value.item():.4g}" for name, value in values.items())
        return (
            f"The loss is not finite at step {self.global_step} ({terms}). Nothing was updated with it. "
            "Lower the learning rate."
        )


def is_split(batch: Any) -> bool:
    """Whether a training batch has a part of its own for each kind of term."""
    return isinstance(batch, dict) and batch.keys() == {"clf", "gen"}
