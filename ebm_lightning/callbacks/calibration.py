"""Whether the classifier's confidence can be believed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError
from torchmetrics.utilities import dim_zero_cat

from ebm_lightning.callbacks.evaluation import Evaluation, Stage
from ebm_lightning.callbacks.pictures import publish
from ebm_lightning.modules import ConditionalEBM

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Calibration(Evaluation):
    """Expected calibration error, logged as ``val/ece`` and ``test/ece``; a reliability diagram at test.

    The value depends on the number of bins and, for few images, is biased upwards: compare like with like.

    References:
        Guo et al., On calibration of modern neural networks, 2017. https://arxiv.org/abs/1706.04599

    Arguments:
        bins: Equal bins of confidence in [0, 1]; 15 as in Guo et al. (JEM++ and SADA-JEM use 20).
        directory: Where the PNG goes; the trainer's log folder by default.
    """

    def __init__(self, bins: int = 15, directory: Path | str | None = None) -> None:
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
            self._draw(trainer, float(ece))

    def _draw(self, trainer: L.Trainer, ece: float) -> None:
        with self.metric.sync_context(should_sync=trainer.world_size > 1):
            confidences, correct = dim_zero_cat(self.metric.confidences), dim_zero_cat(self.metric.accuracies)
        if trainer.is_global_zero:
            figure = reliability_diagram(confidences.cpu(), correct.cpu(), self.bins, ece)
            publish(trainer, "test/reliability", figure, self.directory)


def reliability_diagram(confidences: Tensor, correct: Tensor, bins: int, ece: float) -> "Figure":
    """Accuracy against confidence in equal bins, above the share of images in each."""
    from matplotlib.figure import Figure

    bin_of = (confidences * bins).ceil().clamp(1, bins).long() - 1
    count = torch.zeros(bins).index_add_(0, bin_of, torch.ones(len(bin_of)))
    accuracy = torch.zeros(bins).index_add_(0, bin_of, correct.float()) / count
    centres = (torch.arange(bins) + 0.5) / bins
    figure = Figure(figsize=(4, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    top.plot([0, 1], [0, 1], "--", color="grey", label="perfect")
    top.bar(centres.numpy(), accuracy.nan_to_num().numpy(), width=1 / bins, edgecolor="white", label="accuracy")
    top.set(ylabel="accuracy", title=f"ECE {ece:.4f} ({bins} bins, {len(confidences)} images)", ylim=(0, 1))
    top.legend()
    bottom.bar(centres.numpy(), (count / count.sum()).numpy(), width=1 / bins, color="grey")
    bottom.set(xlabel="confidence max p(y|x)", ylabel="share", xlim=(0, 1), yscale="log")
    return figure
