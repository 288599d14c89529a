"""Out-of-distribution detection: AUROC and FPR95 of scores."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ebm_lightning.callbacks.base import Evaluation, Quota, Stage
from ebm_lightning.callbacks.figures import publish
from ebm_lightning.checks import check_integer
from ebm_lightning.evaluation.metrics import OODScores
from ebm_lightning.evaluation.ood_sets import OOD_SETS, OODSet
from ebm_lightning.evaluation.scores import Score, log_density
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.rng import make_generator

ImageSource = Tensor | Dataset[Any]
"""Images (N, *shape), or a dataset of images, with or without labels."""


class OODDetection(Evaluation):
    """AUROC and FPR95 of scores on out-of-distribution sets: transformed test images, or images of other datasets.

    Logs ``ood/<set>/<score>/auroc`` and ``ood/<set>/<score>/fpr95``, the AUROC of the first score also as
    ``ood/<set>/auroc``, and ``ood/images``, the number of in-distribution images. An AUROC of 0.5 is chance. Below 0.5,
    the model finds the out-of-distribution data more likely than its own. At test, plots a histogram of the first score
    for each set (``ood/<set>``).

    References:
        Hendrycks & Gimpel, A baseline for detecting misclassified and out-of-distribution examples, 2017.
        Liu et al., Energy-based out-of-distribution detection, 2020. https://arxiv.org/abs/2010.03759

    Arguments:
        sets: Names from :data:`ebm_lightning.evaluation.ood_sets.OOD_SETS`; or a mapping from names to images in the
            module's domain, or to functions that make them from a batch, such as ``{**OOD_SETS, "svhn": images}``.
        scores: Scores, each larger for in-distribution data, logged under its function's name. By default log p(x) up
            to log Z.
        stages: When to evaluate.
        directory: Folder of the figures; by default the trainer's log folder.
        seed: Seed of the random sets; each rank has a separate stream.
        limit: Largest number of images of each set, over all ranks, spread evenly over the test images; None for all.

    Raises:
        ValueError: A set is unknown, ``scores`` is empty, or two scores have the same name. At the first batch: images
            are outside the domain.
    """

    def __init__(
        self,
        sets: Sequence[str] | Mapping[str, OODSet | ImageSource] = tuple(OOD_SETS),
        scores: Sequence[Score] = (log_density,),
        stages: Sequence[Stage] = ("test",),
        directory: Path | str | None = None,
        seed: int = 0,
        *,
        limit: int | None = None,
    ) -> None:
        check_integer("limit", limit, at_least=1, optional=True)
        self.sets = dict(sets) if isinstance(sets, Mapping) else {name: _named(name) for name in sets}
        self.scores = {getattr(score, "__name__", type(score).__name__): score for score in scores}
        if not scores or len(self.scores) < len(scores):
            raise ValueError(f"'scores' should be functions with different names, got {list(scores)}.")
        self.stages = tuple(stages)
        self.directory = directory
        self.seed = seed
        self.limit = limit
        self.metrics: dict[tuple[str, str], OODScores] = {}
        self._generator = torch.Generator()
        self._quota = Quota()

    def begin(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        pairs = [(name, score) for name in self.sets for score in self.scores] if stage in self.stages else []
        self.metrics = {pair: OODScores().to(module.device) for pair in pairs}
        self._generator = make_generator(self.seed, trainer.global_rank, "ood", stage, device=module.device)
        self._quota = self.quota(self.limit, stage, trainer)

    def observe(self, stage: Stage, module: ConditionalEBM, outputs: Any, batch: Any) -> None:
        if not self.metrics:
            return
        if not self._quota.seen:
            self._observe_images(module, len(batch[0]))
        if self._quota.full:
            return
        # Transform whole batches: an interpolation also needs images that are not selected.
        made = {name: make(batch[0], module.domain, self._generator) for name, make in self._transforms().items()}
        x, *others = self._quota.take(batch[0], *made.values())
        if not len(x):
            return
        outside = {name: self._scores(module, other) for name, other in zip(made, others, strict=True)}
        inside = self._scores(module, x)
        for name in self.sets:
            self._update(name, inside, outside.get(name, {}))

    def report(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        first = next(iter(self.scores))
        for (name, score), metric in self.metrics.items():
            values = metric.compute()
            module.log_dict({f"ood/{name}/{score}/{k}": v for k, v in values.items()}, sync_dist=True)
            if score == first:
                module.log(f"ood/{name}/auroc", values["auroc"], sync_dist=True)
                if stage == "test":
                    self._plot(trainer, name, score, metric, float(values["auroc"]))
        if self.metrics:
            module.log("ood/images", float(self._quota.seen), sync_dist=True, reduce_fx="sum")

    def _transforms(self) -> dict[str, OODSet]:
        return {name: source for name, source in self.sets.items() if callable(source)}

    def _observe_images(self, module: ConditionalEBM, batch_size: int) -> None:
        """Score the sets that are images.

        At the first batch, because weight averaging may restore the training weights before the epoch ends.
        """
        for name, source in self.sets.items():
            if not callable(source):
                for x in _batches(source, module, self.limit, batch_size):
                    module.domain.check(x, name)
                    self._update(name, {}, self._scores(module, x))

    def _scores(self, module: ConditionalEBM, x: Tensor) -> dict[str, Tensor]:
        with torch.autocast(module.device.type, enabled=False):
            return {name: score(module.energy, x) for name, score in self.scores.items()}

    def _update(self, name: str, inside: dict[str, Tensor], outside: dict[str, Tensor]) -> None:
        empty = torch.empty(0, device=self._generator.device)
        for score in self.scores:
            self.metrics[name, score].update(inside.get(score, empty), outside.get(score, empty))

    def _plot(self, trainer: L.Trainer, name: str, score: str, metric: OODScores, auroc: float) -> None:
        with metric.sync_context(should_sync=trainer.world_size > 1):
            inside, outside = metric.scores()
        if trainer.is_global_zero:
            label = "log p(x) + log Z" if score == log_density.__name__ else score.replace("_", " ")
            figure = plot_scores(inside.cpu(), outside.cpu(), name, auroc, f"score ({label})")
            publish(trainer, f"ood/{name}", figure, self.directory)


def _named(name: str) -> OODSet:
    if name not in OOD_SETS:
        raise ValueError(f"'sets' should be among {', '.join(OOD_SETS)}, got {name!r}. Pass other images in a mapping.")
    return OOD_SETS[name]


def _batches(images: ImageSource, module: ConditionalEBM, limit: int | None, batch_size: int) -> Iterator[Tensor]:
    """This rank's part of the first ``limit`` images, in batches on the module's device, without labels."""
    dataset: Any = images  # a tensor is also a dataset
    rows = range(len(dataset))[:limit][module.trainer.global_rank :: module.trainer.world_size]
    # Without this generator, the loader would draw a seed from the global random state.
    for batch in DataLoader(Subset(dataset, rows), batch_size, generator=torch.Generator()):
        yield (batch if isinstance(batch, Tensor) else batch[0]).to(module.device)


def plot_scores(
    inside: Tensor, outside: Tensor, name: str, auroc: float, label: str = "score (log p(x) + log Z)"
) -> Figure:
    """Histograms of in- and out-of-distribution scores. Infinite scores count in the outermost bins."""
    finite = torch.cat([inside, outside])
    finite = finite[finite.isfinite()]
    low, high = float(finite.min()), float(finite.max())
    # Limit the range below the data: a set with far lower scores would put all data into one bin.
    low = max(low, float(inside.min()) - 4 * (float(inside.max()) - float(inside.min())))
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot()
    for scores, of in ((inside, "test data"), (outside, name)):
        axes.hist(scores.clamp(low, high).numpy(), bins=60, range=(low, high), alpha=0.6, label=of)
    axes.set(xlabel=label, ylabel="images", title=f"{name}: AUROC {auroc:.3f}")
    axes.legend()
    return figure
