"""Log Z and likelihood during training and at test, by annealed importance sampling on all ranks."""

import math
import textwrap
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ebm_lightning.callbacks.base import Evaluation, Stage, TrainerRanks, due, loader_suffix
from ebm_lightning.callbacks.figures import note, publish
from ebm_lightning.callbacks.warn import warn
from ebm_lightning.checks import check_integer
from ebm_lightning.evaluation.error_bars import mean_std_err
from ebm_lightning.evaluation.metrics import bits_per_dim
from ebm_lightning.evaluation.names import model_name
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.modules.normalization import evidence, store_log_z
from ebm_lightning.partition import LogZ, ais
from ebm_lightning.partition.annealing_path import Schedule
from ebm_lightning.partition.proposals import checked_proposal
from ebm_lightning.partition.smc import island_sizes
from ebm_lightning.samplers import HMC, NoiseRefresh
from ebm_lightning.samplers.base import Progress
from ebm_lightning.supports import Box, Density


class AISLogZ(Evaluation):
    r"""Estimates log Z, and from it the likelihood of the evaluated data, every few epochs and at test.

    Logs ``ais/log_z``, ``ais/std_err``, ``ais/ess``, ``ais/reliable`` (1 or 0), the model's class prior
    ``ais/prior_<y>`` and ``ais/log_likelihood`` in nats, with ``ais/log_likelihood_std_err``, which has the error of
    log Z and that of the number of data. With ``num_levels`` it also logs ``ais/bits_per_dim`` and the
    same error in these units, ``ais/bits_per_dim_std_err``. Plots the effective sample size along the path
    (``ais/path``); W&B and TensorBoard also get ``ais/verdict``, why log Z is not reliable.

    All values are for temperature 1. For a model trained with chains at another temperature they describe another
    distribution, and the likelihood will be low. An underestimated log Z makes data look more likely than they are:
    check ``ais/std_err``, and ignore ``ais/bits_per_dim`` where ``ais/reliable`` is 0.

    Chains are grouped into independent blocks (islands), which are distributed over the ranks. Each island has a
    separate random stream, so N ranks give the same estimate as one. Energies of chains and data are computed in
    float32, with autocast disabled. With coordinates, annealing runs in u, where Z is the same. The first batch of each
    rank is evidence, if it has 20 data or more: an estimate that lacks the mass where they lie is not reliable.

    The module keeps the estimate, for ``module.log_prob(x)``. Each of several loaders gets its own likelihood.

    .. math:: \text{bits/dim} = -\frac{\mathbb{E} \log p(x)}{D \log 2} + \log_2 \frac{Q}{high - low}

    References:
        Neal 2001. https://arxiv.org/abs/physics/9803008
        Theis, van den Oord & Bethge, A note on the evaluation of generative models, 2016, for bits per dimension.

    Arguments:
        every_n_epochs: Epochs between estimates; 0 for ``trainer.test`` and ``trainer.validate`` only.
        temperatures, num_chains, kernel, schedule, resample, chunk_size, proposal: As for
            :func:`ebm_lightning.partition.ais`. ``num_chains`` is the total over all ranks. ``proposal="data"`` starts
            at a mixture fitted to the first batch.
        num_levels: Q, the number of integer levels of the data before uniform dequantization into the box (256 for
            8-bit images). If None, bits per dimension is not logged.
        directory: Folder of the figure; by default the trainer's log folder.
        seed: Seed of the estimate.
        progress: Wraps the loops over the stages of pilot runs and over this rank's temperatures: ``tqdm.tqdm``.

    Raises:
        ValueError: A number is out of range. At setup: ``num_levels`` without a box, or no ``proposal`` although the
            support has infinite mass.
    """

    every_loader = True

    def __init__(
        self,
        every_n_epochs: int = 10,
        temperatures: int | None = 250,
        num_chains: int = 1000,
        *,
        kernel: HMC | NoiseRefresh | None = None,
        schedule: Schedule = "adaptive",
        resample: bool = True,
        chunk_size: int | None = None,
        proposal: Density | Literal["data"] | None = None,
        num_levels: int | None = None,
        directory: Path | str | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        check_integer("every_n_epochs", every_n_epochs, at_least=0)
        check_integer("temperatures", temperatures, at_least=1, optional=True)
        check_integer("num_levels", num_levels, at_least=2, optional=True)
        island_sizes(num_chains, chunk_size)  # raises now rather than after an epoch
        self.every_n_epochs = every_n_epochs
        self.temperatures = temperatures
        self.num_chains = num_chains
        self.kernel = kernel
        self.schedule: Schedule = schedule
        self.resample = resample
        self.chunk_size = chunk_size
        self.proposal = proposal
        self.num_levels = num_levels
        self.directory = directory
        self.seed = seed
        self.progress = progress
        self.result: LogZ | None = None
        self._energies: dict[int, list[Tensor]] = {}  # of each loader
        self._data: tuple[Tensor | None, Tensor | None] = (None, None)
        self._due = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        assert isinstance(pl_module, ConditionalEBM)
        if self.num_levels is not None and not isinstance(pl_module.domain, Box):
            raise ValueError(
                f"'num_levels' should be None on {type(pl_module.domain).__name__}, got {self.num_levels}. "
                "Bits per dimension need a Box."
            )
        if not isinstance(self.proposal, str):
            checked_proposal(self.proposal, pl_module.support)

    def begin(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        self._due = trainer.state.fn != "fit" or due(trainer.current_epoch + 1, self.every_n_epochs)
        self._energies = {}
        if self._due:
            self.result = None  # so that other callbacks do not use that of an earlier epoch

    def observe(self, stage: Stage, module: ConditionalEBM, outputs: Any, batch: Any) -> None:
        if not self._due:
            return
        if not self._energies:
            # At the first batch, because weight averaging may restore the training weights before the epoch ends.
            parts = TrainerRanks(module.trainer).all_gather((batch[0].cpu(), batch[1].cpu()))
            self._data = evidence(module, parts)
            self.result = self.estimate(module.trainer, module)
            store_log_z(module, self.result)
        with torch.autocast(module.device.type, enabled=False):
            self._energies.setdefault(self.loader, []).append(module.energy(batch[0]).double().cpu())

    def report(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        if not self._due or self.result is None:
            return
        metrics = self._metrics(self.result)
        for loader in self._energies:
            suffix, likelihood = loader_suffix(loader, stage, trainer), self._likelihood(loader, self.result, module)
            metrics |= {name + suffix: value for name, value in likelihood.items()}
        for name, value in metrics.items():
            module.log(f"ais/{name}", value, sync_dist=True, batch_size=1, add_dataloader_idx=False)
        if not self.result.reliable:
            warn(
                f"log Z is unreliable for the {model_name(module)} of {type(module.classifier).__name__}: "
                f"{self.result.log_z:.3f} +- {self.result.std_err:.3f} nats. {self.result.why}"
            )
        note(trainer, "ais/verdict", self.result.why or "log Z is reliable")
        if trainer.is_global_zero and len(self.result.ess_curve):
            publish(trainer, "ais/path", plot_ess(self.result), self.directory)

    def estimate(self, trainer: L.Trainer, module: ConditionalEBM) -> LogZ:
        """log Z from the islands of all ranks; the same on every rank."""
        data, labels = self._data
        with torch.autocast(module.device.type, enabled=False):
            return ais(
                module.chain_energy,
                module.support,
                proposal=self.proposal,
                kernel=self.kernel,
                temperatures=self.temperatures,
                num_chains=self.num_chains,
                schedule=self.schedule,
                resample=self.resample,
                chunk_size=self.chunk_size,
                generator=torch.Generator(module.device),
                seed=self.seed,
                progress=self.progress,
                ranks=TrainerRanks(trainer),
                data=data,
                labels=labels,
            )

    def _metrics(self, result: LogZ) -> dict[str, float]:
        metrics = {
            "log_z": result.log_z,
            "std_err": result.std_err,
            "ess": result.ess,
            "reliable": float(result.reliable),
        }
        if result.per_class is not None:
            metrics |= {f"prior_{y}": p for y, p in enumerate(result.prior.tolist())}
        return metrics

    def _likelihood(self, loader: int, result: LogZ, module: ConditionalEBM) -> dict[str, float]:
        """Of the data of one loader, over all ranks."""
        energies = torch.cat(TrainerRanks(module.trainer).all_gather(torch.cat(self._energies[loader])))
        metrics = {
            "log_likelihood": -float(energies.mean()) - result.log_z,
            "log_likelihood_std_err": math.hypot(result.std_err, mean_std_err(energies)),
        }
        if self.num_levels is not None and isinstance(module.domain, Box):
            shape, width = module.domain.shape, module.domain.high - module.domain.low
            metrics["bits_per_dim"] = bits_per_dim(metrics["log_likelihood"], shape, width, self.num_levels)
            std_err = metrics["log_likelihood_std_err"]
            metrics["bits_per_dim_std_err"] = std_err / (math.prod(shape) * math.log(2))
        return metrics


def plot_ess(result: LogZ) -> Figure:
    """Effective sample size and acceptance along the path. Where they dip, temperatures are too far apart."""
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot()
    path = torch.linspace(0, 1, len(result.ess_curve)).numpy()
    axes.plot(path, result.ess_curve.numpy(), label="relative effective sample size")
    axes.plot(path, result.acceptance.numpy(), label="acceptance rate", alpha=0.6)
    axes.plot(path, result.betas[1:].numpy(), "--", color="grey", label="beta")
    axes.set(xlabel="fraction of temperatures done", ylim=(0, 1.02))
    axes.set_title(f"log Z = {result.log_z:.2f} ± {result.std_err:.2f}" + ("" if result.reliable else ", UNRELIABLE"))
    axes.legend(fontsize=8)
    if result.why:
        figure.supxlabel(textwrap.fill(result.why, 80), fontsize=7)
    return figure
