"""Standard errors of test metrics, from the number of test images."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from ebm_lightning.callbacks.base import Evaluation, Stage, TrainerRanks
from ebm_lightning.checks import check_integer
from ebm_lightning.evaluation.error_bars import ece_resamples, fraction_std_err, mean_std_err
from ebm_lightning.modules import ConditionalEBM


class ErrorBars(Evaluation):
    """Standard errors of the accuracy, of the calibration error and of the likelihood of labels, at test.

    Logs ``test/images``, the number of images, ``test/accuracy_std_err``, ``test/nll_std_err`` and, by a bootstrap,
    ``test/ece_std_err``. They contain the choice of the test images, and not that of the training run.
    Of several loaders it uses the first.

    Arguments:
        bins: Bins of the calibration error, as for :class:`Calibration`.

    Raises:
        ValueError: ``bins`` is below 1.

    Attributes:
        values: ``correct``, ``confidence``, ``nll`` and ``energy`` of each image of the last test, shape (N,) each.
    """

    needs_labels = True

    needs_labels = True

    def __init__(self, bins: int = 15) -> None:
        check_integer("bins", bins, at_least=1)
        self.bins = bins
        self.values: dict[str, Tensor] = {}
        self._parts: list[dict[str, Tensor]] = []

    def begin(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        self._parts = []

    def observe(self, stage: Stage, module: ConditionalEBM, outputs: Any, batch: Any) -> None:
        if stage != "test":
            return
        logits, y = outputs["logits"].double(), batch[1]
        confidence, guess = logits.softmax(1).max(1)
        values = {
            "correct": guess == y,
            "confidence": confidence,
            "nll": F.cross_entropy(logits, y, reduction="none"),
            "energy": outputs["energy"].double(),
        }
        self._parts.append({name: value.cpu() for name, value in values.items()})

    def report(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        if stage != "test":
            return
        parts = [part for rank in TrainerRanks(trainer).all_gather(self._parts) for part in rank]
        self.values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for name, value in self.metrics().items():
            module.log(f"test/{name}", value, batch_size=1, sync_dist=True)

    def metrics(self) -> dict[str, float]:
        """The metrics that are logged, without the prefix ``test/``."""
        correct, n = self.values["correct"], len(self.values["correct"])
        resamples = ece_resamples(self.values["confidence"], correct, self.bins)
        return {
            "images": float(n),
            "accuracy_std_err": fraction_std_err(float(correct.double().mean()), n),
            "nll_std_err": mean_std_err(self.values["nll"]),
            "ece_std_err": float(resamples.std()),
        }
