"""How well scores tell test data from data that are not of the training distribution."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ebm_lightning.callbacks.evaluation import Evaluation, Quota, Stage, check_positive
from ebm_lightning.callbacks.pictures import publish
from ebm_lightning.metrics import OODScores
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.ood import OOD_SETS, OODSet
from ebm_lightning.scores import Score, log_density
from ebm_lightning.streams import make_generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Images = Tensor | Dataset[Any]
"""Images (N, *shape), or a dataset of them, with labels or without."""


class OODDetection(Evaluation):
    """AUROC and FPR95 of scores on sets made from the evaluated data, and on images of other data.

    Logs ``ood/<set>/<score>/auroc`` and ``ood/<set>/<score>/fpr95``, the AUROC of the first score also as
    ``ood/<set>/auroc``, and ``ood/images``, the number of images in distribution. An AUROC of 0.5 is chance and below
    0.5 is worse: the model then finds the foreign data likelier than its own. Draws the histogram of the first score
    for each set (``ood/<set>``) at test.

    References:
        Hendrycks & Gimpel, A baseline for detecting misclassified and out-of-distribution examples, 2017.
        Liu et al., Energy-based out-of-distribution detection, 2020. https://arxiv.org/abs/2010.03759

    Arguments:
        sets: Names from :data:`ebm_lightning.ood.OOD_SETS`; or a mapping from names of your own to images in the
            module's support, or to a function that makes them from a batch: ``{**OOD_SETS, "svhn": images}``.
        scores: Each larger for data in distribution, and logged by its function's name; log p(x) up to log Z by
            default.
        stages: When to evaluate.
        directory: Where PNGs go; the trainer's log folder by default.
        seed: Of the sets that are drawn at random; each rank has its own stream.
        limit: Most images of each set, over all ranks, spread evenly over the test images; all by default.

    Raises:
        ValueError: A set is unknown, no score or two of one name. While running: images outside the support.
    """

    def __init__(
        self,
        sets: Sequence[str] | Mapping[str, OODSet | Images] = tuple(OOD_SETS),
        scores: Sequence[Score] = (log_density,),
        stages: Sequence[Stage] = ("test",),
        directory: Path | str | None = None,
        seed: int = 0,
        *,
        limit: int | None = None,
    ) -> None:
        check_positive(limit=limit)
        self.sets = dict(sets) if isinstance(sets, Mapping) else {name: _named(name) for name in sets}
        self.scores = {getattr(score, "__name__", type(score).__name__): score for score in scores}
        if not scores or len(self.scores) < len(scores):
            raise ValueError(f"'scores' should be functions of different names, got {list(scores)}.")
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
        # Sets are made from whole batches: an interpolation needs other images beside those that are wanted.
        made = {name: make(batch[0], module.support, self._generator) for name, make in self._makers().items()}
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
            figures = metric.compute()
            module.log_dict({f"ood/{name}/{score}/{k}": v for k, v in figures.items()}, sync_dist=True)
            if score == first:
                module.log(f"ood/{name}/auroc", figures["auroc"], sync_dist=True)
                if stage == "test":
                    self._draw(trainer, name, score, metric, float(figures["auroc"]))
        if self.metrics:
            module.log("ood/images", float(self._quota.seen), sync_dist=True, reduce_fx="sum")

    def _makers(self) -> dict[str, OODSet]:
        return {name: source for name, source in self.sets.items() if callable(source)}

    def _observe_images(self, module: ConditionalEBM, batch_size: int) -> None:
        """Score the sets that are images; early, since weight averaging may take its weights back before the end."""
        for name, source in self.sets.items():
            if not callable(source):
                for x in _share(source, module, self.limit, batch_size):
                    module.support.check(x, name)
                    self._update(name, {}, self._scores(module, x))

    def _scores(self, module: ConditionalEBM, x: Tensor) -> dict[str, Tensor]:
        with torch.autocast(module.device.type, enabled=False):
            return {name: score(module.energy, x) for name, score in self.scores.items()}

    def _update(self, name: str, inside: dict[str, Tensor], outside: dict[str, Tensor]) -> None:
        none = torch.empty(0, device=self._generator.device)
        for score in self.scores:
            self.metrics[name, score].update(inside.get(score, none), outside.get(score, none))

    def _draw(self, trainer: L.Trainer, name: str, score: str, metric: OODScores, auroc: float) -> None:
        with metric.sync_context(should_sync=trainer.world_size > 1):
            inside, outside = metric.scores()
        if trainer.is_global_zero:
            label = "log p(x) + log Z" if score == log_density.__name__ else score.replace("_", " ")
            figure = histogram(inside.cpu(), outside.cpu(), name, auroc, f"score ({label})")
            publish(trainer, f"ood/{name}", figure, self.directory)


def _named(name: str) -> OODSet:
    if name not in OOD_SETS:
        raise ValueError(f"'sets' should be among {', '.join(OOD_SETS)}, got {name!r}. Give images in a mapping.")
    return OOD_SETS[name]


def _share(images: Images, module: ConditionalEBM, limit: int | None, batch_size: int) -> Iterator[Tensor]:
    """This rank's share of the first ``limit`` images, in batches on the module's device, without their labels."""
    dataset: Any = images  # a tensor is as good a dataset as any
    rows = range(len(dataset))[:limit][module.trainer.global_rank :: module.trainer.world_size]
    # A loader without a generator of its own would take a number from the global random state.
    for batch in DataLoader(Subset(dataset, rows), batch_size, generator=torch.Generator()):
        yield (batch if isinstance(batch, Tensor) else batch[0]).to(module.device)


def histogram(
    inside: Tensor, outside: Tensor, name: str, auroc: float, label: str = "score (log p(x) + log Z)"
) -> "Figure":
    """Scores in and out of distribution, as two histograms on one axis; infinite scores are counted at its edge."""
    from matplotlib.figure import Figure

    finite = torch.cat([inside, outside])
    finite = finite[finite.isfinite()]
    low, high = float(finite.min()), float(finite.max())
    # A far-off set would squeeze the data into one bar: show from a little below the data, or all where it is near.
    low = max(low, float(inside.min()) - 4 * (float(inside.max()) - float(inside.min())))
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot()
    for scores, of in ((inside, "test data"), (outside, name)):
        axes.hist(scores.clamp(low, high).numpy(), bins=60, range=(low, high), alpha=0.6, label=of)
    axes.set(xlabel=label, ylabel="images", title=f"{name}: AUROC {auroc:.3f}")
    axes.legend()
    return figure
