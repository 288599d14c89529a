"""How well a score tells test data from data that are not of the training distribution."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor

from ebm_lightning.callbacks.evaluation import Evaluation, Stage
from ebm_lightning.callbacks.pictures import publish
from ebm_lightning.energies import JointEnergy, log_density
from ebm_lightning.metrics import OODScores
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.ood import OOD_SETS
from ebm_lightning.streams import make_generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Score = Callable[[JointEnergy, Tensor], Tensor]


class OODDetection(Evaluation):
    """AUROC of a score on sets made from the evaluated data, logged as ``ood/<set>/auroc``.

    0.5 is chance and below 0.5 is worse: the model then finds the foreign data likelier than its own. Draws the
    histogram of scores for each set (``ood/<set>``) at test.

    References:
        Hendrycks & Gimpel, A baseline for detecting misclassified and out-of-distribution examples, 2017.
        Liu et al., Energy-based out-of-distribution detection, 2020. https://arxiv.org/abs/2010.03759

    Arguments:
        sets: Names from :data:`ebm_lightning.ood.OOD_SETS`.
        score: Larger for data in distribution; log p(x) up to log Z by default.
        stages: When to evaluate.
        directory: Where PNGs go; the trainer's log folder by default.
        seed: Of the sets that are drawn at random; each rank has its own stream.

    Raises:
        ValueError: A set is unknown.
    """

    def __init__(
        self,
        sets: Sequence[str] = tuple(OOD_SETS),
        score: Score = log_density,
        stages: Sequence[Stage] = ("test",),
        directory: Path | str | None = None,
        seed: int = 0,
    ) -> None:
        for name in sets:
            if name not in OOD_SETS:
                raise ValueError(f"'sets' should be among {', '.join(OOD_SETS)}, got {name!r}.")
        self.sets = tuple(sets)
        self.score = score
        self.stages = tuple(stages)
        self.directory = directory
        self.seed = seed
        self.metrics: dict[str, OODScores] = {}
        self._generator = torch.Generator()

    def begin(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        self.metrics = {name: OODScores().to(module.device) for name in self.sets if stage in self.stages}
        self._generator = make_generator(self.seed, trainer.global_rank, "ood", stage, device=module.device)

    def observe(self, stage: Stage, module: ConditionalEBM, outputs: Any, batch: Any) -> None:
        x = batch[0]
        inside = self.score(module.energy, x) if self.metrics else x
        for name, metric in self.metrics.items():
            metric.update(inside, self.score(module.energy, OOD_SETS[name](x, module.support, self._generator)))

    def report(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        for name, metric in self.metrics.items():
            auroc = metric.compute()
            module.log(f"ood/{name}/auroc", auroc, sync_dist=True)
            if stage == "test":
                self._draw(trainer, name, metric, float(auroc))

    def _draw(self, trainer: L.Trainer, name: str, metric: OODScores, auroc: float) -> None:
        with metric.sync_context(should_sync=trainer.world_size > 1):
            inside, outside = metric.scores()
        if trainer.is_global_zero:
            publish(trainer, f"ood/{name}", histogram(inside.cpu(), outside.cpu(), name, auroc), self.directory)


def histogram(inside: Tensor, outside: Tensor, name: str, auroc: float) -> "Figure":
    """Scores in and out of distribution, as two histograms on one axis; infinite scores are counted at its edge."""
    from matplotlib.figure import Figure

    finite = torch.cat([inside, outside])
    finite = finite[finite.isfinite()]
    low, high = float(finite.min()), float(finite.max())
    # A far-off set would squeeze the data into one bar: show from a little below the data, or all where it is near.
    low = max(low, float(inside.min()) - 4 * (float(inside.max()) - float(inside.min())))
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot()
    for scores, label in ((inside, "test data"), (outside, name)):
        axes.hist(scores.clamp(low, high).numpy(), bins=60, range=(low, high), alpha=0.6, label=label)
    axes.set(xlabel="score (log p(x) + log Z)", ylabel="images", title=f"{name}: AUROC {auroc:.3f}")
    axes.legend()
    return figure
