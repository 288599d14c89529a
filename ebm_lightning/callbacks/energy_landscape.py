"""Whether the energy still pulls where chains are: the norm of its gradient at data, at chains and on the way out."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ebm_lightning.callbacks.evaluation import Evaluation, Stage
from ebm_lightning.callbacks.pictures import publish
from ebm_lightning.chains import DataInit, ReplayBuffer
from ebm_lightning.modules import JEM, ConditionalEBM
from ebm_lightning.samplers import quiet, value_and_gradient
from ebm_lightning.streams import make_generator
from ebm_lightning.supports import Binary, Box

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 1e-8  # the picture's smallest gradient: below, all is flat


class Landscape(NamedTuple):
    """What one rank saw: gradient norms at data (N,), at chains (M,) or None, and energies and norms along rays.

    ``distance`` (S,) is in units of x; ``energy`` and ``norm`` are (N, S), NaN beyond the walls of a box.
    """

    data: Tensor
    chains: Tensor | None
    distance: Tensor
    energy: Tensor
    norm: Tensor


class EnergyLandscape(Evaluation):
    r"""Measures the norm of grad E at data, at chains and along straight rays that leave the data.

    Logs the medians ``landscape/gradient_data``, ``landscape/gradient_chains`` and ``landscape/gradient_far`` (the ends
    of the rays), and ``landscape/lost``, the share of chains whose gradient is below ``floor`` times the largest median
    met at data or along the rays. A chain there feels noise alone and never finds its way back, so training learns
    nothing from it; where more than half of them are lost, a warning says so. A saturating energy,
    E(x) = a tanh(b |x|^2), does that. Small gradients at data are no fault: that is where a trained energy is lowest.

    Chains are those of a ReplayBuffer, else fresh ones moved by the module's sampler. Each rank looks at its first
    batch; the picture (``landscape/rays``) is rank 0's.

    Arguments:
        every_n_epochs: Epochs between looks; 0 for test and ``trainer.validate`` alone.
        points: Most data points, rays and chains to look at.
        reach: Length of the rays, in root mean square distances of the data from their mean.
        floor: Share of the largest median gradient below which a gradient has vanished.
        directory: Where the PNG goes; the trainer's log folder by default.
        seed: Of the rays and of fresh chains.

    Raises:
        ValueError: A number that is not positive; at the start, a support whose points have nothing between them.
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
        for name, value in (("points", points), ("reach", reach), ("floor", floor)):
            if not value > 0:
                raise ValueError(f"'{name}' should be positive, got {value}.")
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
                "'support' should be continuous for EnergyLandscape, got Binary: corners have no gradient."
            )

    def begin(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        every = self.every_n_epochs
        self._due = trainer.state.fn != "fit" or bool(every and (trainer.current_epoch + 1) % every == 0)
        self.result = None

    def observe(self, stage: Stage, module: ConditionalEBM, outputs: Any, batch: Any) -> None:
        if self._due and self.result is None:
            self.result = self.look(module, batch[0][: self.points])

    def report(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        if self.result is None:
            return
        figures = self.figures(self.result)
        for name, value in figures.items():
            module.log(f"landscape/{name}", value, sync_dist=True, batch_size=1)
        if figures.get("lost", 0.0) > 0.5:
            rank_zero_warn(
                f"The gradient vanishes where chains are: {100 * figures['lost']:.0f} % of them have less than "
                f"{self.floor:g} of the largest gradient, {self._scale(self.result):.3g}, and feel noise alone. Start "
                "chains at the data (DataInit), raise 'reinit_prob', or take a network that does not saturate."
            )
        if trainer.is_global_zero:
            publish(trainer, "landscape/rays", draw(self.result), self.directory)

    def look(self, module: ConditionalEBM, x: Tensor) -> Landscape:
        """Energies and gradient norms from the data ``x`` (N, *shape) outwards, and at chains."""
        generator = make_generator(self.seed, module.global_rank, "landscape", device=module.device)
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(module.device.type, enabled=False):
            x = x.clone().float()
            chains = self._chains(module, x, generator)
            ray = torch.randn(x.shape, generator=generator, device=x.device)
            ray = ray / ray.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))
            spread = (x - x.mean(0)).flatten(1).square().sum(1).mean().sqrt().clamp(min=1e-6)
            distance = torch.linspace(0, self.reach, 41, device=x.device) * spread
            with quiet(module.energy):
                along = [_measure(module, x + d * ray) for d in distance]
                energy, norm = (torch.stack(part, 1).cpu() for part in zip(*along, strict=True))
                at_chains = None if chains is None else _measure(module, chains)[1].cpu()
        return Landscape(norm[:, 0], at_chains, distance.cpu(), energy, norm)

    def figures(self, seen: Landscape) -> dict[str, float]:
        """What is logged, under ``landscape/``."""
        figures = {"gradient_data": float(seen.data.median()), "gradient_far": float(_medians(seen.norm)[-1])}
        if seen.chains is not None:
            figures["gradient_chains"] = float(seen.chains.median())
            figures["lost"] = float((seen.chains < self.floor * self._scale(seen)).float().mean())
        return figures

    def _scale(self, seen: Landscape) -> float:
        return float(_medians(seen.norm).max())

    def _chains(self, module: ConditionalEBM, x: Tensor, generator: torch.Generator) -> Tensor | None:
        if not isinstance(module, JEM):
            return None
        if isinstance(module.chains, ReplayBuffer) and module.generator is not None:
            order = torch.randperm(module.chains.size, generator=generator, device=module.chains.x.device)
            return module.chains.x[order[: self.points]].to(x.device)
        at_data = isinstance(module.chains, DataInit)
        start = x if at_data else module.support.sample(len(x), generator=generator)
        return module.sampler(module.energy, start, support=module.support, generator=generator)


def _measure(module: ConditionalEBM, x: Tensor) -> tuple[Tensor, Tensor]:
    """E(x) and |grad E(x)|, shape (N,) each; NaN outside a box."""
    energy, gradient = value_and_gradient(module.energy, x)
    norm = gradient.flatten(1).norm(dim=1)
    if isinstance(module.support, Box):
        outside = ~module.support.contains(x)
        energy, norm = energy.masked_fill(outside, math.nan), norm.masked_fill(outside, math.nan)
    return energy, norm


def _medians(values: Tensor) -> Tensor:
    """Of each column with any value, shape (at most S,): the last is where the longest ray inside ends."""
    medians = values.nanmedian(0).values
    return medians[medians.isfinite()]


def draw(seen: Landscape) -> "Figure":
    """Energy and gradient norm against the distance from the data: medians, and the middle 80 % of rays."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for ax, values in zip(panels, (seen.energy, seen.norm.clamp(min=SHOWN)), strict=True):
        low, middle, high = values.nanquantile(torch.tensor([0.1, 0.5, 0.9]), 0).numpy()
        ax.fill_between(seen.distance.numpy(), low, high, alpha=0.25)
        ax.plot(seen.distance.numpy(), middle, label="rays from the data")
        ax.set_xlabel("distance from the data, in units of x")
    panels[0].set(ylabel="E(x)", title="energy")
    panels[1].set(ylabel="|grad E(x)|", title="gradient", yscale="log")
    marks = [("data", seen.data, "tab:green", "--"), ("chains", seen.chains, "tab:red", ":")]
    for name, norm, colour, style in marks:
        if norm is not None:
            height = max(float(norm.median()), SHOWN)
            panels[1].axhline(height, color=colour, ls=style, lw=2, label=f"median at {name}")
    panels[1].legend(fontsize=8)
    return figure
