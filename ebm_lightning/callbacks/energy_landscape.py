"""Gradient norms at data, at chains and along rays."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ebm_lightning.callbacks.base import Evaluation, Stage, due
from ebm_lightning.callbacks.figures import publish
from ebm_lightning.callbacks.warn import warn
from ebm_lightning.chains import DataInit, ReplayBuffer
from ebm_lightning.checks import check_integer, check_number
from ebm_lightning.evaluation.names import model_name
from ebm_lightning.modules import JEM, ConditionalEBM
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import frozen, value_and_gradient
from ebm_lightning.supports import Binary, Box

SMALLEST_SHOWN = 1e-8  # gradient norms in the figure are clamped to at least this


class Landscape(NamedTuple):
    """Measurements of one rank.

    Attributes:
        data: Gradient norms at data, shape (N,).
        chains: Gradient norms at chains, shape (M,), or None.
        distance: Distances from the data along each ray, shape (S,), in units of x.
        energy: Energies along the rays, shape (N, S); NaN outside a box.
        norm: Gradient norms along the rays, shape (N, S); NaN outside a box.
    """

    data: Tensor
    chains: Tensor | None
    distance: Tensor
    energy: Tensor
    norm: Tensor


class EnergyLandscape(Evaluation):
    r"""Norm of grad E at data, at chains and along straight rays from the data. Warns where it vanishes at chains.

    Logs the median norms ``landscape/gradient_data``, ``landscape/gradient_chains`` and ``landscape/gradient_far`` (at
    the ends of the rays), and ``landscape/lost``: the fraction of chains whose gradient is below ``floor`` times the
    largest median at data and along the rays. Such a chain moves by noise only and does not return to the data, so
    training learns nothing from it. If more than half of the chains are lost, there is a warning. Saturating energies
    such as E(x) = a tanh(b |x|^2) cause this. Small gradients at data are normal: a trained energy is lowest there.

    With coordinates, everything is measured in u, where chains move.

    Chains are those of the ReplayBuffer, or new ones moved by the module's sampler. Each rank measures on its first
    batch, of the first loader. The figure (``landscape/rays``) is of rank 0.

    Arguments:
        every_n_epochs: Epochs between measurements; 0 for ``trainer.test`` and ``trainer.validate`` only.
        points: Largest number of data points, rays and chains.
        reach: Length of the rays, in units of the root mean square distance of the data from their mean.
        floor: A gradient norm has vanished if it is below this fraction of the largest median.
        directory: Folder of the figure; by default the trainer's log folder.
        seed: Seed of the rays and of new chains.

    Raises:
        ValueError: A number is out of range. At setup: the support is discrete.
    """

    def __init__(
        self,
        every_n_epochs: int = 10,
        points: int = 128,
        reach: float = 5.0,
        floor: float = 1e-3,
        directory: Path | str | None = None,
        seed: int = 0,
    ) -> None:
        check_integer("every_n_epochs", every_n_epochs, at_least=0)
        check_integer("points", points, at_least=1)
        check_number("reach", reach, above=0)
        check_number("floor", floor, above=0)
        self.every_n_epochs = every_n_epochs
        self.points = points
        self.reach = reach
        self.floor = floor
        self.directory = directory
        self.seed = seed
        self.result: Landscape | None = None
        self._due = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if isinstance(getattr(pl_module, "support", None), Binary):
            raise ValueError(
                "'support' should be continuous for EnergyLandscape, got Binary. The energy has no gradient there."
            )

    def begin(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        self._due = trainer.state.fn != "fit" or due(trainer.current_epoch + 1, self.every_n_epochs)
        self.result = None

    def observe(self, stage: Stage, module: ConditionalEBM, outputs: Any, batch: Any) -> None:
        if self._due and self.result is None:
            self.result = self.measure(module, batch[0][: self.points])

    def report(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        if self.result is None:
            return
        metrics = self.metrics(self.result)
        for name, value in metrics.items():
            module.log(f"landscape/{name}", value, sync_dist=True, batch_size=1)
        if metrics.get("lost", 0.0) > 0.5:
            warn(
                f"The gradient vanishes at the chains: for {100 * metrics['lost']:.0f} % of them, in the "
                f"{model_name(module)} of {type(module.classifier).__name__}, its norm is below {self.floor:g} times "
                f"the largest median, {self._scale(self.result):.3g}, so they move by noise only. "
                "Start chains at the data (DataInit), raise 'reinit_prob', or use a network that does not saturate."
            )
        if trainer.is_global_zero:
            publish(trainer, "landscape/rays", plot_rays(self.result), self.directory)

    def measure(self, module: ConditionalEBM, x: Tensor) -> Landscape:
        """Gradient norms at chains, and energies and gradient norms along rays from the data ``x`` (N, *shape)."""
        generator = make_generator(self.seed, module.global_rank, "landscape", device=module.device)
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(module.device.type, enabled=False):
            x = module.coordinates(x.clone().float())
            chains = self._chains(module, x, generator)
            ray = torch.randn(x.shape, generator=generator, device=x.device)
            ray = ray / ray.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))
            spread = (x - x.mean(0)).flatten(1).square().sum(1).mean().sqrt().clamp(min=1e-6)
            distance = torch.linspace(0, self.reach, 41, device=x.device) * spread
            with frozen(module.chain_energy):
                along = [_measure(module, x + d * ray) for d in distance]
                energy, norm = (torch.stack(part, 1).cpu() for part in zip(*along, strict=True))
                at_chains = None if chains is None else _measure(module, chains)[1].cpu()
        return Landscape(norm[:, 0], at_chains, distance.cpu(), energy, norm)

    def metrics(self, landscape: Landscape) -> dict[str, float]:
        """The metrics that are logged, without the prefix ``landscape/``."""
        metrics = {"gradient_data": float(landscape.data.median()), "gradient_far": float(_medians(landscape.norm)[-1])}
        if landscape.chains is not None:
            metrics["gradient_chains"] = float(landscape.chains.median())
            metrics["lost"] = float((landscape.chains < self.floor * self._scale(landscape)).float().mean())
        return metrics

    def _scale(self, landscape: Landscape) -> float:
        return float(_medians(landscape.norm).max())

    def _chains(self, module: ConditionalEBM, x: Tensor, generator: torch.Generator) -> Tensor | None:
        if not isinstance(module, JEM):
            return None
        if isinstance(module.chains, ReplayBuffer) and module.generator is not None:
            order = torch.randperm(module.chains.size, generator=generator, device=module.chains.x.device)
            return module.chains.x[order[: self.points]].to(x.device)
        start = x if isinstance(module.chains, DataInit) else module.support.sample(len(x), generator=generator)
        return module.sampler(module.chain_energy, start, support=module.support, generator=generator)


def _measure(module: ConditionalEBM, x: Tensor) -> tuple[Tensor, Tensor]:
    """E(x) and |grad E(x)|, shape (N,) each; NaN outside a box."""
    energy, gradient = value_and_gradient(module.chain_energy, x)
    norm = gradient.flatten(1).norm(dim=1)
    if isinstance(module.support, Box):
        outside = ~module.support.contains(x)
        energy, norm = energy.masked_fill(outside, math.nan), norm.masked_fill(outside, math.nan)
    return energy, norm


def _medians(values: Tensor) -> Tensor:
    """Median of each column, shape (at most S,). Columns without values, where all rays are outside, are left out."""
    medians = values.nanmedian(0).values
    return medians[medians.isfinite()]


def plot_rays(landscape: Landscape) -> Figure:
    """Energy and gradient norm against the distance from the data: median and middle 80 % of the rays."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for ax, values in zip(panels, (landscape.energy, landscape.norm.clamp(min=SMALLEST_SHOWN)), strict=True):
        low, middle, high = values.nanquantile(torch.tensor([0.1, 0.5, 0.9]), 0).numpy()
        ax.fill_between(landscape.distance.numpy(), low, high, alpha=0.25)
        ax.plot(landscape.distance.numpy(), middle, label="median over rays")
        ax.set_xlabel("distance from the data, in units of x")
    panels[0].set(ylabel="E(x)", title="energy")
    panels[1].set(ylabel="|grad E(x)|", title="gradient norm", yscale="log")
    lines = [("data", landscape.data, "tab:green", "--"), ("chains", landscape.chains, "tab:red", ":")]
    for name, norm, color, style in lines:
        if norm is not None:
            height = max(float(norm.median()), SMALLEST_SHOWN)
            panels[1].axhline(height, color=color, ls=style, lw=2, label=f"median at {name}")
    panels[1].legend(fontsize=8)
    return figure
