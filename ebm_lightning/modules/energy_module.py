"""A classifier as an energy in a LightningModule: reads and checks batches, evaluates them, and has no loss."""

import functools
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebm_lightning.checks import check_integer
from ebm_lightning.contracts import TWO_LOGITS
from ebm_lightning.coordinates import Coordinates
from ebm_lightning.energies import JointEnergy
from ebm_lightning.modules import normalization, sampling, scoring
from ebm_lightning.modules.batches import BatchKeys, check_batch_keys, check_labels, class_indices, split_batch
from ebm_lightning.modules.check_classifier import FirstLook
from ebm_lightning.modules.stored_values import StoredValues
from ebm_lightning.resume.base import ResumableModule
from ebm_lightning.resume.hparams import rebuild
from ebm_lightning.supports import Euclidean, Support


class EnergyModule(ResumableModule):
    """A classifier as E(x) and E(x, y), without a loss: the base class of :class:`ConditionalEBM`.

    It reads batches, checks them, validates, tests and predicts. A subclass adds ``training_step`` and
    ``configure_optimizers``.

    Arguments:
        classifier, num_classes, support, coordinates, batch_keys: As for :class:`ConditionalEBM`.

    Raises:
        ValueError: As for :class:`ConditionalEBM`.
    """

    def __init__(
        self,
        classifier: nn.Module,
        num_classes: int,
        support: Support | None = None,
        *,
        coordinates: Coordinates | None = None,
        batch_keys: BatchKeys | None = None,
    ) -> None:
        super().__init__()
        remedy = TWO_LOGITS if isinstance(num_classes, int) and num_classes == 1 else ""
        num_classes = check_integer("num_classes", num_classes, at_least=2, remedy=remedy)
        coordinates = rebuild(coordinates, Coordinates, "coordinates")
        support = rebuild(support, Support, "support") or (Euclidean() if coordinates is None else coordinates.codomain)
        self.energy = JointEnergy(rebuild(classifier, nn.Module, "classifier"), support, coordinates=coordinates)
        self.save_hyperparameters()
        self._first_look = FirstLook()
        self.num_classes: int = num_classes
        self.batch_keys = check_batch_keys(batch_keys)
        self.stored_threshold = StoredValues(1)
        self.stored_log_z = normalization.stored_log_z(num_classes)

    @property
    def classifier(self) -> nn.Module:
        return self.energy.classifier

    @property
    def support(self) -> Support:
        """Domain of u, where chains move, with the reference density. Without coordinates that of x."""
        return self.energy.support

    @property
    def coordinates(self) -> Coordinates:
        """The map from x to u; the identity by default."""
        return self.energy.coordinates

    @property
    def domain(self) -> Support:
        """Domain of x."""
        return self.coordinates.domain

    @property
    def chain_energy(self) -> JointEnergy:
        """The energy of u, on ``support``, in which chains and annealing run. Without coordinates ``energy`` itself."""
        return self.energy.in_coordinates

    def chains_follow_gradients(self) -> bool:
        """Whether training moves chains along the gradient of the energy in x."""
        return False

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (N, K)."""
        return self._logits(self.coordinates(x))

    def checked_logits(self, x: Tensor) -> Tensor:
        """Logits of inputs as :meth:`inputs_and_labels` returns them, shape (N, K). Losses and metrics are of these."""
        logits: Tensor = self(x)
        return logits

    def _logits(self, u: Tensor) -> Tensor:
        """Logits of points in coordinates, shape (N, K)."""
        logits: Tensor = self.chain_energy.logits(u)
        if logits.shape[1] != self.num_classes:
            remedy = TWO_LOGITS if logits.shape[1] == 1 else "Change one of them."
            raise ValueError(
                f"'num_classes' should be the number of logits, got {self.num_classes} for a classifier with "
                f"{logits.shape[1]}. {remedy}"
            )
        return logits

    # Everyday use, without a trainer. Each function has the model as its first argument.

    sample = sampling.sample
    score = scoring.score
    threshold = scoring.threshold
    is_ood = scoring.is_ood
    estimate_log_z = normalization.estimate_log_z
    log_z = property(normalization.known_log_z)
    log_prob = normalization.log_prob

    # Batches.

    def inputs_and_labels(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Inputs and labels of what a loader yields; labels are None if there are none.

        Everything that reads batches calls it. Override it for batches of another form.

        Raises:
            ValueError: The form is unknown.
        """
        return split_batch(batch, self.batch_keys)

    def check_batch(self, x: Tensor, y: Tensor | None = None, *, unlabeled: bool = False) -> None:
        """Check that x is in its domain and that y holds classes, or also -1 if ``unlabeled``.

        Every step calls it: for each batch on the CPU, but only for the first on an accelerator, which would have to
        be synchronized.

        Raises:
            ValueError: They are not. The message says how to fix it.
        """
        self.domain.check(x)
        if y is not None:
            check_labels(y, len(x), self.num_classes, unlabeled=unlabeled)

    # Lightning's hooks.

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        return self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        return self._evaluate(batch, batch_idx, "test")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Logits (N, K) and energies E(x) (N,). Labels are not needed, and ignored if there are some."""
        x, _ = self.inputs_and_labels(batch)
        if x.device.type == "cpu" or batch_idx == 0:
            self.check_batch(x)
        self._first_look(self, x)
        return self._outputs(x)

    def _evaluate(self, batch: Any, batch_idx: int, stage: Literal["val", "test"]) -> dict[str, Tensor]:
        """Logits and energies. Lightning averages what is logged over the batches of each loader and over ranks."""
        x, y = self.inputs_and_labels(batch)
        if x.device.type == "cpu" or batch_idx == 0:
            self.check_batch(x, y)
        self._first_look(self, x)
        outputs = self._outputs(x)
        if not torch.isfinite(outputs["energy"]).all():  # accelerators checked the first batch only
            self.check_batch(x, y)
        log = functools.partial(self.log, batch_size=len(x), sync_dist=True)
        if y is not None:
            correct = outputs["logits"].argmax(1) == class_indices(y)
            log(f"{stage}/accuracy", correct.float().mean(), prog_bar=True)
            log(f"{stage}/nll", F.cross_entropy(outputs["logits"], y))
        log(f"{stage}/energy", outputs["energy"].mean())
        return outputs

    def _outputs(self, x: Tensor) -> dict[str, Tensor]:
        logits = self.checked_logits(x)
        return {"logits": logits, "energy": self.energy.from_logits(logits, x)}
