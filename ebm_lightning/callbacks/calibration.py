"""Calibration error of the classifier."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError
from torchmetrics.utilities import dim_zero_cat

from ebm_lightning.callbacks.base import Evaluation, Stage, loader_suffix
from ebm_lightning.callbacks.figures import publish
from ebm_lightning.checks import check_integer
from ebm_lightning.modules import ConditionalEBM


class Calibration(Evaluation):
    """Expected calibration error of p(y|x), with a reliability diagram at test.

    Logs ``val/ece`` and ``test/ece``, and plots ``test/reliability``. The value depends on the number of bins and is
    biased upwards for few images: compare only values from the same bins and number of images. Each of several loaders
    gets its own value and diagram.

    References:
        Guo et al., On calibration of modern neural networks, 2017. https://arxiv.org/abs/1706.04599

    Arguments:
        bins: Number of equal bins of confidence in [0, 1]; 15 as in Guo et al. (JEM++ and SADA-JEM use 20).
        directory: Folder of the figure; by default the trainer's log folder.

    Raises:
        ValueError: ``bins`` is below 1.
    """

    every_loader = True
    needs_labels = True

    def __init__(self, bins: int = 15, directory: Path | str | None = None) -> None:
        check_integer("bins", bins, at_least=1)
        self.bins = bins
        self.directory = directory
        self.metrics: dict[int, MulticlassCalibrationError] = {}  # of each loader

    def begin(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        self.metrics = {}

    def observe(self, stage: Stage, module: ConditionalEBM, outputs: Any, batch: Any) -> None:
        if self.loader not in self.metrics:
            metric = MulticlassCalibrationError(module.num_classes, n_bins=self.bins)
            self.metrics[self.loader] = metric.to(module.device)
        self.metrics[self.loader].update(outputs["logits"].softmax(1), batch[1])

    def report(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        for loader, metric in self.metrics.items():
            ece, suffix = metric.compute(), loader_suffix(loader, stage, trainer)
            module.log(f"{stage}/ece{suffix}", ece, sync_dist=True, add_dataloader_idx=False)
            if stage == "test":
                self._plot(trainer, metric, float(ece), suffix)

    def _plot(self, trainer: L.Trainer, metric: MulticlassCalibrationError, ece: float, suffix: str) -> None:
        with metric.sync_context(should_sync=trainer.world_size > 1):
            confidences, correct = dim_zero_cat(metric.confidences), dim_zero_cat(metric.accuracies)
        if trainer.is_global_zero:
            figure = plot_reliability(confidences.cpu(), correct.cpu(), self.bins, ece)
            publish(trainer, f"test/reliability{suffix}", figure, self.directory)


def plot_reliability(confidences: Tensor, correct: Tensor, bins: int, ece: float) -> Figure:
    """Accuracy against confidence in equal bins, and below it the fraction of images in each bin."""
    bin_of = (confidences * bins).ceil().clamp(1, bins).long() - 1
    count = torch.zeros(bins).index_add_(0, bin_of, torch.ones(len(bin_of)))
    accuracy = torch.zeros(bins).index_add_(0, bin_of, correct.float()) / count
    centers = (torch.arange(bins) + 0.5) / bins
    figure = Figure(figsize=(4.6, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    top.plot([0, 1], [0, 1], "--", color="grey", label="perfect calibration")
    top.bar(centers.numpy(), accuracy.nan_to_num().numpy(), width=1 / bins, edgecolor="white", label="accuracy")
    top.set(ylabel="accuracy", title=f"ECE {ece:.4f} ({bins} bins, {len(confidences)} images)", ylim=(0, 1))
    top.legend(loc="upper left")
    bottom.bar(centers.numpy(), (count / count.sum()).numpy(), width=1 / bins, color="grey")
    bottom.set(
        xlabel="confidence max p(y|x)", ylabel="fraction", xlim=(0, 1), yscale="log", ylim=(0.5 / len(confidences), 1.5)
    )
    bottom.yaxis.set_major_locator(LogLocator(10, numticks=4))  # a decade each; by default minor ticks overlap
    bottom.yaxis.set_minor_formatter(NullFormatter())
    return figure
