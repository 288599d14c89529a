"""How much of the accuracy is left on images that were changed on purpose, and on noisy ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics.aggregation import MeanMetric

from ebm_lightning.attacks import PGD
from ebm_lightning.callbacks.evaluation import Evaluation, Quota, Stage, check_positive
from ebm_lightning.callbacks.fresh import Progress
from ebm_lightning.callbacks.pictures import publish
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.streams import make_generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Robustness(Evaluation):
    """Accuracy at test under projected gradient descent and under Gaussian noise, on ``limit`` images spread evenly.

    Logs ``robust/linf_<eps>``, ``robust/l2_<eps>``, ``robust/noise_<std>``, ``robust/clean`` and ``robust/images``, and
    draws the curves (``robust/curves``). An image that a smaller ball holds an error for is in error in a larger one,
    and one that is misclassified as it is counts as lost, so that only what still stands is attacked. The attack sees
    the gradients of the plain classifier p(y|x) and no refinement; it bounds robustness from above, see
    :class:`ebm_lightning.attacks.PGD`. All sizes are in units of x: in a box [-1, 1] an eps of 0.2 moves a pixel by a
    tenth of its range.

    Arguments:
        linf: Radii of the largest change of any component.
        l2: Radii of the Euclidean length of the change.
        noise: Standard deviations of Gaussian noise; pixels beyond the box are clamped to it.
        steps: Gradients that each attack follows.
        limit: Most images, over all ranks; all where it is None.
        directory: Where the PNG goes; the trainer's log folder by default.
        seed: Of random starts and noise; each rank has its own stream.
        progress: Wraps the loop over attacks of each batch, such as ``tqdm.tqdm``.

    Raises:
        ValueError: A number that is not positive.
    """

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
        check_positive(steps=steps, limit=limit)
        for std in noise:
            check_positive(noise=std)
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
            clean = self._right(module, x, y)
            self.metrics["clean"].update(clean)
            for std in self.noise:
                noise = torch.randn(x.shape, generator=self._generator, device=x.device)
                noisy = module.support.clamp(x + std * noise)
                self.metrics[_name("noise", std)].update(self._right(module, noisy, y))
            self._attack(module, x, y, clean)

    def report(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        if not self.metrics:
            return
        figures = {name: float(metric.compute()) for name, metric in self.metrics.items()}
        module.log_dict({f"robust/{name}": value for name, value in figures.items()}, sync_dist=True)
        module.log("robust/images", float(self._quota.seen), sync_dist=True, reduce_fx="sum")
        if trainer.is_global_zero:
            publish(trainer, "robust/curves", self._draw(figures), self.directory)

    def _attack(self, module: ConditionalEBM, x: Tensor, y: Tensor, clean: Tensor) -> None:
        order = range(len(self._attacks))
        standing = {"linf": clean.bool(), "l2": clean.bool()}
        for k in self.progress(order) if self.progress else order:
            attack = self._attacks[k]
            alive = standing[attack.norm].nonzero().squeeze(1)
            left = torch.zeros_like(standing[attack.norm])
            if len(alive):
                attacked = attack(
                    module.energy.logits, x[alive], y[alive], support=module.support, generator=self._generator
                )
                left[alive] = self._right(module, attacked, y[alive]).bool()
            standing[attack.norm] = left
            self.metrics[_name(attack.norm, attack.eps)].update(left.float())

    def _right(self, module: ConditionalEBM, x: Tensor, y: Tensor) -> Tensor:
        """1 for each image that is classified correctly, else 0, shape (N,)."""
        return (module.energy.logits(x).argmax(1) == y).float() if len(x) else x.new_zeros(0)

    def _draw(self, figures: dict[str, float]) -> "Figure":
        panels = {
            "L-inf attack: radius eps": ("linf", self.linf),
            "L2 attack: radius eps": ("l2", self.l2),
            "Gaussian noise: standard deviation": ("noise", self.noise),
        }
        curves = {
            title: {0.0: figures["clean"]} | {size: figures[_name(kind, size)] for size in sorted(sizes)}
            for title, (kind, sizes) in panels.items()
            if sizes
        }
        return robustness_curves(curves)


def robustness_curves(curves: dict[str, dict[float, float]]) -> "Figure":
    """A panel for each kind of change: accuracy against its size in units of x."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * max(1, len(curves)), 2.8), layout="constrained")
    for ax, (title, points) in zip(
        figure.subplots(1, max(1, len(curves)), squeeze=False)[0], curves.items(), strict=False
    ):
        ax.plot(list(points), list(points.values()), "o-")
        ax.set(xlabel=f"{title}", ylim=(-0.02, 1.02), ylabel="accuracy")
        ax.grid(alpha=0.3)
    return figure


def _name(kind: str, size: float) -> str:
    return f"{kind}_{size:g}"
