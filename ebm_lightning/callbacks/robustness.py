"""Accuracy under adversarial attack and under Gaussian noise."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.aggregation import MeanMetric

from ebm_lightning.callbacks.base import Evaluation, Quota, Stage
from ebm_lightning.callbacks.figures import publish
from ebm_lightning.checks import check_integer, check_number
from ebm_lightning.evaluation.attacks import PGD
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers.base import Progress


class Robustness(Evaluation):
    """Test accuracy under projected gradient descent (PGD) and under Gaussian noise.

    Logs ``robust/clean``, ``robust/linf_<eps>``, ``robust/l2_<eps>``, ``robust/noise_<std>`` and ``robust/images``, the
    number of images, and plots the accuracies (``robust/curves``). All sizes are in units of x: in a box [-1, 1], an
    eps of 0.2 changes a pixel by up to a tenth of its range. Of several loaders it uses the first.

    Errors at a smaller eps count at larger eps of the same norm, and misclassified images count as errors at every
    eps, so only images that are still classified correctly are attacked. The attack uses gradients of the classifier
    p(y|x), without refinement. Its accuracy is an upper bound on the robust accuracy, see
    :class:`ebm_lightning.evaluation.attacks.PGD`.

    Arguments:
        linf: Radii of L-inf attacks: the largest change of a component.
        l2: Radii of L2 attacks: the Euclidean length of the change.
        noise: Standard deviations of Gaussian noise. Noisy images are clamped to the support.
        steps: Gradient steps of each attack.
        limit: Largest number of images, over all ranks, spread evenly over the test set; None for all.
        directory: Folder of the figure; by default the trainer's log folder.
        seed: Seed of random starts and noise; each rank has a separate stream.
        progress: Wraps the loop over attacks of each batch, such as ``tqdm.tqdm``.

    Raises:
        ValueError: A number is not positive.
    """

    needs_labels = True

    def __init__(
        self,
        linf: Sequence[float] = (0.05, 0.1, 0.2),
        l2: Sequence[float] = (0.5, 1.0, 2.0),
        noise: Sequence[float] = (0.25, 0.5, 1.0),
        steps: int = 20,
        limit: int | None = 1000,
        *,
        directory: Path | str | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        check_integer("steps", steps, at_least=1)
        check_integer("limit", limit, at_least=1, optional=True)
        for std in noise:
            check_number("noise", std, above=0)
        self.linf = tuple(linf)
        self.l2 = tuple(l2)
        self.noise = tuple(noise)
        self.steps = steps
        self.limit = limit
        self.directory = directory
        self.seed = seed
        self.progress = progress
        radii = [("linf", eps) for eps in sorted(linf)] + [("l2", eps) for eps in sorted(l2)]
        self._attacks = [PGD(eps, "linf" if norm == "linf" else "l2", steps) for norm, eps in radii]
        self.metrics: dict[str, MeanMetric] = {}
        self._quota = Quota()
        self._generator = torch.Generator()

    def begin(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        attacks = [_name(attack.norm, attack.eps) for attack in self._attacks]
        names = ["clean", *attacks, *(_name("noise", std) for std in self.noise)] if stage == "test" else []
        self.metrics = {name: MeanMetric().to(module.device) for name in names}
        self._quota = self.quota(self.limit, stage, trainer)
        self._generator = make_generator(self.seed, trainer.global_rank, "robustness", device=module.device)

    def observe(self, stage: Stage, module: ConditionalEBM, outputs: Any, batch: Any) -> None:
        if not self.metrics:
            return
        x, y = self._quota.take(batch[0], batch[1])
        if not len(x):
            return
        with torch.autocast(module.device.type, enabled=False):
            clean = self._correct(module, x, y)
            self.metrics["clean"].update(clean)
            for std in self.noise:
                noise = torch.randn(x.shape, generator=self._generator, device=x.device)
                noisy = module.domain.clamp(x + std * noise)
                self.metrics[_name("noise", std)].update(self._correct(module, noisy, y))
            self._attack(module, x, y, clean)

    def report(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        if not self.metrics:
            return
        accuracies = {name: float(metric.compute()) for name, metric in self.metrics.items()}
        module.log_dict({f"robust/{name}": value for name, value in accuracies.items()}, sync_dist=True)
        module.log("robust/images", float(self._quota.seen), sync_dist=True, reduce_fx="sum")
        if trainer.is_global_zero:
            publish(trainer, "robust/curves", self._plot(accuracies), self.directory)

    def _attack(self, module: ConditionalEBM, x: Tensor, y: Tensor, clean: Tensor) -> None:
        """Run all attacks, those of each norm by increasing eps."""
        correct = {"linf": clean.bool(), "l2": clean.bool()}
        for k in (self.progress or iter)(range(len(self._attacks))):
            attack = self._attacks[k]
            index = correct[attack.norm].nonzero().squeeze(1)
            still_correct = torch.zeros_like(correct[attack.norm])
            if len(index):
                attacked = attack(
                    module.energy.logits, x[index], y[index], support=module.domain, generator=self._generator
                )
                still_correct[index] = self._correct(module, attacked, y[index]).bool()
            correct[attack.norm] = still_correct
            self.metrics[_name(attack.norm, attack.eps)].update(still_correct.float())

    def _correct(self, module: ConditionalEBM, x: Tensor, y: Tensor) -> Tensor:
        """1 for each image that is classified correctly, else 0, shape (N,)."""
        return (module.energy.logits(x).argmax(1) == y).float()

    def _plot(self, accuracies: dict[str, float]) -> Figure:
        panels = {
            "L-inf attack: radius eps": ("linf", self.linf),
            "L2 attack: radius eps": ("l2", self.l2),
            "Gaussian noise: standard deviation": ("noise", self.noise),
        }
        curves = {
            title: {0.0: accuracies["clean"]} | {size: accuracies[_name(kind, size)] for size in sorted(sizes)}
            for title, (kind, sizes) in panels.items()
            if sizes
        }
        return plot_robustness(curves)


def plot_robustness(curves: dict[str, dict[float, float]]) -> Figure:
    """Accuracy against the size of the change in units of x, one panel for each kind of change."""
    columns = max(1, len(curves))
    figure = Figure(figsize=(3.2 * columns, 2.8), layout="constrained")
    panels = figure.subplots(1, columns, squeeze=False)[0]
    for ax, (title, points) in zip(panels, curves.items(), strict=False):
        ax.plot(list(points), list(points.values()), "o-")
        ax.set(xlabel=title, ylim=(-0.02, 1.02), ylabel="accuracy")
        ax.grid(alpha=0.3)
    return figure


def _name(kind: str, size: float) -> str:
    return f"{kind}_{size:g}"
