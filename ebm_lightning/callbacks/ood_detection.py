"""Out-of-distribution detection: AUROC, FPR95 and AUPR of scores."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ebm_lightning.callbacks.base import Evaluation, Quota, Stage
from ebm_lightning.callbacks.figures import publish
from ebm_lightning.callbacks.ood_histogram import SHOWN, Scores, plot_scores
from ebm_lightning.checks import check_integer
from ebm_lightning.evaluation.metrics import OODScores
from ebm_lightning.evaluation.names import model_name
from ebm_lightning.evaluation.ood_sets import OOD_SETS, OODSet, misfit, usual_sets
from ebm_lightning.evaluation.scores import Score, log_density
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.modules.random_state import seeded_globally
from ebm_lightning.modules.training_data import pass_over
from ebm_lightning.rng import make_generator

ImageSource = Tensor | Dataset[Any] | DataLoader[Any]
"""Data (N, *shape), or a dataset or loader of them, with or without labels, whose batches have any of the forms."""


class OODDetection(Evaluation):
    """AUROC, FPR95 and AUPR of scores on out-of-distribution sets: transformed test data, or data of other sets.

    Logs ``ood/<set>/<score>/auroc`` and ``.../fpr95``, each with its standard error ``..._std_err``, ``.../aupr_in``
    and ``.../aupr_out``, the AUROC of the first score also as ``ood/<set>/auroc``, and ``ood/images``, the number of
    in-distribution data. An AUROC of 0.5 is chance. Below 0.5, the model finds the out-of-distribution data more likely
    than its own. At test, plots some points of each set and a histogram of the first score (``ood/<set>``). Of several
    loaders the first has the in-distribution data.

    References:
        Hendrycks & Gimpel, A baseline for detecting misclassified and out-of-distribution examples, 2017.
        Liu et al., Energy-based out-of-distribution detection, 2020. https://arxiv.org/abs/2010.03759

    Arguments:
        sets: Names from :data:`ebm_lightning.evaluation.ood_sets.OOD_SETS`; or a mapping from names to data in the
            module's domain (a tensor, dataset or loader), or to functions that make them from a batch, such as
            ``{**OOD_SETS, "svhn": images}``. By default the functions that make sense: all of them for images, for
            vectors noise from the reference density (if it has finite mass) and means of two points.
        scores: Scores, each larger for in-distribution data, logged under its function's name. By default log p(x) up
            to log Z.
        stages: When to evaluate.
        directory: Folder of the figures; by default the trainer's log folder.
        seed: Seed of the random sets; each rank has a separate stream.
        limit: Largest number of images of each set, over all ranks, spread evenly over the test images; None for all.

    Attributes:
        metrics: The scores of the last epoch, by set and score.
        examples: The first few points of each set, shape (n, *shape).

    Raises:
        ValueError: A set is unknown, ``scores`` is empty, or two scores have the same name. At the first batch: images
            are outside the domain.
    """

    def __init__(
        self,
        sets: Sequence[str] | Mapping[str, OODSet | ImageSource] | None = None,
        scores: Sequence[Score] = (log_density,),
        stages: Sequence[Stage] = ("test",),
        directory: Path | str | None = None,
        seed: int = 0,
        *,
        limit: int | None = None,
    ) -> None:
        check_integer("limit", limit, at_least=1, optional=True)
        self.usual = sets is None
        names = sets or ()
        self.sets = dict(names) if isinstance(names, Mapping) else {name: _named(name) for name in names}
        self.scores = {getattr(score, "__name__", type(score).__name__): score for score in scores}
        if not scores or len(self.scores) < len(scores):
            raise ValueError(f"'scores' should be functions with different names, got {list(scores)}.")
        self.stages = tuple(stages)
        self.directory = directory
        self.seed = seed
        self.limit = limit
        self.metrics: dict[tuple[str, str], OODScores] = {}
        self.examples: dict[str, Tensor] = {}
        self._generator = torch.Generator()
        self._quota = Quota()
        self._active = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        assert isinstance(pl_module, ConditionalEBM)
        self._check_sets(pl_module, pl_module.domain.shape)

    def begin(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        self._active, self.metrics = stage in self.stages, {}
        self._generator = make_generator(self.seed, trainer.global_rank, "ood", stage, device=module.device)
        self._quota = self.quota(self.limit, stage, trainer)
        self.examples = {}

    def observe(self, stage: Stage, module: ConditionalEBM, outputs: Any, batch: Any) -> None:
        if not self._active:
            return
        if not self.metrics:
            self._start_metrics(module, batch[0])
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
        for name, other in zip(made, others, strict=True):
            self._keep_examples(name, other)
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
                    self._plot(trainer, module, name, score, metric)
        if self.metrics:
            module.log("ood/images", float(self._quota.seen), sync_dist=True, reduce_fx="sum")

    def _start_metrics(self, module: ConditionalEBM, x: Tensor) -> None:
        """At the first batch, because a domain such as Euclidean() leaves the shape of x open."""
        if self.usual:
            self.sets = dict(usual_sets(module.domain, tuple(x.shape[1:])))
        self._check_sets(module, tuple(x.shape[1:]))
        pairs = [(name, score) for name in self.sets for score in self.scores]
        self.metrics = {pair: OODScores().to(module.device) for pair in pairs}

    def _check_sets(self, module: ConditionalEBM, shape: tuple[int, ...] | None) -> None:
        for name, source in self.sets.items():
            why = misfit(name, module.domain, shape) if source is OOD_SETS.get(name) else ""
            if why and not self.usual:
                usual = ", ".join(map(repr, usual_sets(module.domain, shape)))
                raise ValueError(f"'sets' should fit the data, got {name!r}. {why} Leave it out; [{usual}] fit.")

    def _transforms(self) -> dict[str, OODSet]:
        return {name: source for name, source in self.sets.items() if callable(source)}

    def _observe_images(self, module: ConditionalEBM, batch_size: int) -> None:
        """Score the sets that are images.

        At the first batch, because weight averaging may restore the training weights before the epoch ends.
        """
        with seeded_globally(0):  # loaders and augmentations draw from the global random state
            for name, source in self.sets.items():
                if not callable(source):
                    for x in _batches(source, module, self.limit, batch_size):
                        module.domain.check(x, name)
                        self._keep_examples(name, x)
                        self._update(name, {}, self._scores(module, x))

    def _scores(self, module: ConditionalEBM, x: Tensor) -> dict[str, Tensor]:
        with torch.autocast(module.device.type, enabled=False):
            return {name: score(module.energy, x) for name, score in self.scores.items()}

    def _update(self, name: str, inside: dict[str, Tensor], outside: dict[str, Tensor]) -> None:
        empty = torch.empty(0, device=self._generator.device)
        for score in self.scores:
            self.metrics[name, score].update(inside.get(score, empty), outside.get(score, empty))

    def _keep_examples(self, name: str, x: Tensor) -> None:
        kept = self.examples.get(name, x[:0].cpu())
        self.examples[name] = torch.cat([kept, x[: SHOWN - len(kept)].cpu()])

    def _plot(self, trainer: L.Trainer, module: ConditionalEBM, name: str, score: str, metric: OODScores) -> None:
        with metric.sync_context(should_sync=trainer.world_size > 1):
            inside, outside = metric.scores()
        if trainer.is_global_zero:
            scores = {model_name(module): Scores(inside.cpu(), outside.cpu())}
            figure = plot_scores(scores, name, self.examples[name], module.domain, score)
            publish(trainer, f"ood/{name}", figure, self.directory)


def _named(name: str) -> OODSet:
    if name not in OOD_SETS:
        raise ValueError(f"'sets' should be among {', '.join(OOD_SETS)}, got {name!r}. Pass other images in a mapping.")
    return OOD_SETS[name]


def _batches(source: ImageSource, module: ConditionalEBM, limit: int | None, batch_size: int) -> Iterator[Tensor]:
    """This rank's part of the first ``limit`` data, in batches on the module's device, without labels."""
    rank, world_size = module.trainer.global_rank, module.trainer.world_size
    if isinstance(source, DataLoader):
        batches = pass_over(source, rank, world_size)
    else:
        dataset: Any = source  # a tensor is also a dataset
        rows = range(len(dataset))[rank::world_size]
        batches = DataLoader(Subset(dataset, rows), batch_size)
    left = math.inf if limit is None else len(range(rank, limit, world_size))
    for batch in batches:
        if not left:
            return
        x, _ = module.inputs_and_labels(batch)
        x = x if left == math.inf else x[: int(left)]
        left -= len(x)
        yield x.to(module.device)
