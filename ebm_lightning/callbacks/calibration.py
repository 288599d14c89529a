"""Calibration error of the classifier."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError
from torchmetrics.utilities import dim_zero_cat

from ebm_lightning.callbacks.base import Evaluation, Stage
from ebm_lightning.callbacks.figures import publish
from ebm_lightning.checks import check_integer
from ebm_lightning.modules import ConditionalEBM


class Calibration(Evaluation):
    """Expected calibration error of p(y|x), with a reliability diagram at test.

    Logs ``val/ece`` and ``test/ece``, and plots ``test/reliability``. The value depends on the number of bins and is
    biased upwards for few images: compare only values from the same bins and number of images.

    References:
        Guo et al., On calibration of modern neural networks, 2017. https://arxiv.org/abs/1706.04599

    Arguments:
        bins: Number of equal bins of confidence in [0, 1]; 15 as in Guo et al. (JEM++ and SADA-JEM use 20).
        directory: Folder of the figure; by default the trainer's log folder.

    Raises:
        ValueError: ``bins`` is below 1.
    """

    def __init__(self, bins: int = 15, directory: Path | str | None = None) -> None:
        check_integer("bins", bins, at_least=1)
        self.bins = bins
        self.directory = directory
        self.metric = MulticlassCalibrationError(num_classes=2, n_bins=bins)

    def begin(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        self.metric = MulticlassCalibrationError(module.num_classes, n_bins=self.bins).to(module.device)

    def observe(self, stage: Stage, module: ConditionalEBM, outputs: Any, batch: Any) -> None:
        self.metric.update(outputs["logits"].softmax(1), batch[1])

    def report(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        ece = self.metric.compute()
        module.log(f"{stage}/ece", ece, sync_dist=True)
        if stage == "test":
            self._plot(trainer, float(ece))

    def _plot(self, trainer: L.Trainer, ece: float) -> None:
        with self.metric.sync_context(should_sync=trainer.world_size > 1):
            confidences, correct = dim_zero_cat(self.metric.confidences), dim_zero_cat(self.metric.accuracies)
        if trainer.is_global_zero:
            figure = plot_reliability(confidences.cpu(), correct.cpu(), self.bins, ece)
            publish(trainer, "test/reliability", figure, self.directory)


def plot_reliability(confidences: Tensor, correct: Tensor, bins: int, ece: float) -> Figure:
    """Accuracy against confidence in equal bins, and below it the fraction of images in each bin."""
    bin_of = (confidences * bins).ceil().clamp(1, bins).long() - 1
    count = torch.zeros(bins).index_add_(0, bin_of, torch.ones(len(bin_of)))
    accuracy = torch.zeros(bins).index_add_(0, bin_of, correct.float()) / count
    centers = (torch.arange(bins) + 0.5) / bins
    figure = Figure(figsize=(4, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    top.plot([0, 1], [0, 1], "--", color="grey", label="perfect calibration")
    top.bar(centers.numpy(), accuracy.nan_to_num().numpy(), width=1 / bins, edgecolor="white", label="accuracy")
    top.set(ylabel="accuracy", title=f"ECE {ece:.4f} ({bins} bins, {len(confidences)} images)", ylim=(0, 1))
    top.legend()
    bottom.bar(centers.numpy(), (count / count.sum()).numpy(), width=1 / bins, color="grey")
    bottom.set(xlabel="confidence max p(y|x)", ylabel="fraction of images", xlim=(0, 1), yscale="log")
    return figure
