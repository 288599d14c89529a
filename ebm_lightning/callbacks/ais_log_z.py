"""log Z while a model trains: annealed importance sampling as a callback, on any number of ranks."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ebm_lightning.callbacks.evaluation import Evaluation, Stage
from ebm_lightning.callbacks.pictures import publish
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.partition.ais import integrable, make_plan
from ebm_lightning.partition.islands import Progress, combine, island_sizes, run_islands
from ebm_lightning.partition.log_z import LogZ
from ebm_lightning.partition.plan import Plan, Schedule
from ebm_lightning.partition.proposals import Proposal, Reference
from ebm_lightning.partition.rbm import classification_rbm_ais
from ebm_lightning.samplers import GHMC, HMC
from ebm_lightning.streams import make_generator
from ebm_lightning.supports import Binary, Box

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class AISLogZ(Evaluation):
    r"""Estimates log Z every few epochs and at test, and with it the likelihood of the evaluated data.

    Logs ``ais/log_z``, ``ais/std_err``, ``ais/ess``, ``ais/reliable`` (1 or 0), the model's own class prior
    ``ais/prior_<y>``, ``ais/log_likelihood`` in nats and, given ``num_levels``, ``ais/bits_per_dim`` with the error
    that log Z leaves in it, ``ais/bits_per_dim_std_err``; draws the effective sample size along the path. All hold for
    temperature 1: chains trained at another temperature leave their mass elsewhere, and the likelihood will say so. A
    log Z that is too low makes data look too likely: read the bits with ``ais/std_err`` beside them, and not at all
    where ``ais/reliable`` is 0.

    The pilot and the islands are dealt to the ranks; every island has a stream of its own, so N ranks give the
    estimate of one. Energies are those of the module in float32, autocast off, for chains and data alike.

    .. math:: \text{bits/dim} = -\frac{\mathbb{E} \log p(x)}{D \log 2} + \log_2 \frac{Q}{high - low}

    References:
        Neal 2001. https://arxiv.org/abs/physics/9803008
        Theis, van den Oord & Bethge, A note on the evaluation of generative models, 2016, for the bits.

    Arguments:
        every_n_epochs: Epochs between estimates; 0 for test (and ``trainer.validate``) alone.
        temperatures, chains, kernel, schedule, resample, chunk_size, proposal: As for
            :func:`ebm_lightning.partition.ais`; chains are the sum over ranks.
        num_levels: Q, the integer levels of the data before they were dequantised uniformly into the box (256 for
            8-bit images); None leaves the bits out.
        directory: Where the picture goes; the trainer's log folder by default.
        seed: Of the estimate.
        progress: Wraps this rank's loop over temperatures, such as ``tqdm.tqdm``.

    Raises:
        ValueError: ``num_levels`` without a box, or infinite mass without a proposal.
    """

    def __init__(
        self,
        every_n_epochs: int = 10,
        temperatures: int = 250,
        chains: int = 1000,
        *,
        kernel: HMC | None = None,
        schedule: Schedule = "adaptive",
        resample: bool = True,
        chunk_size: int | None = None,
        proposal: Proposal | None = None,
        num_levels: int | None = None,
        directory: Path | str | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        island_sizes(chains, chunk_size)  # complains now, not after an epoch
        self.every_n_epochs = every_n_epochs
        self.temperatures = temperatures
        self.chains = chains
        self.kernel = kernel or GHMC()
        self.schedule: Schedule = schedule
        self.resample = resample
        self.chunk_size = chunk_size
        self.proposal = proposal
        self.num_levels = num_levels
        self.directory = directory
        self.seed = seed
        self.progress = progress
        self.result: LogZ | None = None
        self._energies: list[Tensor] = []
        self._due = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        assert isinstance(pl_module, ConditionalEBM)
        if self.num_levels is not None and not isinstance(pl_module.support, Box):
            raise ValueError(
                f"'num_levels' should be None on {type(pl_module.support).__name__}, got {self.num_levels}."
            )
        if self.proposal is None:
            Reference(pl_module.support)

    def begin(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        fitting = trainer.state.fn == "fit"
        self._due = not fitting or bool(self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0)
        self._energies = []

    def observe(self, stage: Stage, module: ConditionalEBM, outputs: Any, batch: Any) -> None:
        if not self._due:
            return
        if not self._energies:
            # Not at the epoch's end: weight averaging may by then have taken back the weights that were evaluated.
            self.result = self.estimate(module.trainer, module)
        with torch.autocast(module.device.type, enabled=False):
            self._energies.append(module.energy(batch[0]).double().cpu())

    def report(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        if not self._due or self.result is None:
            return
        for name, value in self._figures(self.result, trainer, module).items():
            module.log(f"ais/{name}", value, sync_dist=True, batch_size=1)
        if not self.result.reliable:
            rank_zero_warn(
                f"log Z is unreliable: {self.result.log_z:.3f} +- {self.result.std_err:.3f} nats, effective share "
                f"{self.result.ess:.3f} of {self.chains} chains. Raise 'temperatures' or 'chains'."
            )
        if trainer.is_global_zero and len(self.result.ess_curve):
            publish(trainer, "ais/ess", ess_curve(self.result), self.directory)

    def estimate(self, trainer: L.Trainer, module: ConditionalEBM) -> LogZ:
        """log Z from all ranks' islands; the same on every rank."""
        energy, support, device = module.energy, module.support, module.device
        if isinstance(support, Binary):  # no gradient to follow: block Gibbs, the same on every rank
            generator = make_generator(self.seed, "rbm", device=device)
            return classification_rbm_ais(
                energy, temperatures=self.temperatures, chains=self.chains, generator=generator
            )
        proposal, rank, world = self.proposal or Reference(support), trainer.global_rank, trainer.world_size
        sizes = dict(enumerate(island_sizes(self.chains, self.chunk_size)))
        mine = {k: n for k, n in sizes.items() if k % world == rank}
        with torch.autocast(device.type, enabled=False):
            if not integrable(energy, support, proposal, make_generator(self.seed, "rays", device=device)):
                return LogZ(math.nan, math.nan, 0.0, integrable=False, reliable=False)
            plan = make_plan(
                energy, support, proposal, self.kernel, self.temperatures, self.schedule, self.seed, device
            )
            plan = share(plan)
            islands = run_islands(
                energy, support, proposal, self.kernel, plan, mine, self.seed, device, self.resample, self.progress
            )
        gathered = gather(islands)
        return combine([gathered[k] for k in sorted(gathered)], plan, self.kernel, self.resample)

    def _figures(self, result: LogZ, trainer: L.Trainer, module: ConditionalEBM) -> dict[str, float]:
        figures = {
            "log_z": result.log_z,
            "std_err": result.std_err,
            "ess": result.ess,
            "reliable": float(result.reliable),
        }
        if result.per_class is not None:
            figures |= {f"prior_{y}": p for y, p in enumerate(result.prior.tolist())}
        energies = torch.cat(list(gather({trainer.global_rank: torch.cat(self._energies)}).values()))
        figures["log_likelihood"] = -float(energies.mean()) - result.log_z
        if self.num_levels is not None and isinstance(module.support, Box):
            nats = -figures["log_likelihood"] / math.prod(module.support.shape)
            width = module.support.high - module.support.low
            figures["bits_per_dim"] = nats / math.log(2) + math.log2(self.num_levels / width)
            figures["bits_per_dim_std_err"] = result.std_err / (math.prod(module.support.shape) * math.log(2))
        return figures


def share(plan: Plan) -> Plan:
    """Rank 0's path, on every rank."""
    if not dist.is_initialized():
        return plan
    box = [plan]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(mine: dict[int, Any]) -> dict[int, Any]:
    """Every rank's numbered parts; shares may be uneven or empty."""
    if not dist.is_initialized():
        return mine
    parts: list[dict[int, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, mine)
    return {k: v for part in parts for k, v in part.items()}


def ess_curve(result: LogZ) -> "Figure":
    """Effective sample size and acceptance along the path: a dip is where it is too steep."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot()
    path = torch.linspace(0, 1, len(result.ess_curve)).numpy()
    axes.plot(path, result.ess_curve.numpy(), label="effective share of chains")
    axes.plot(path, result.acceptance.numpy(), label="acceptance", alpha=0.6)
    axes.plot(path, result.betas[1:].numpy(), "--", color="grey", label="beta")
    axes.set(xlabel="share of the temperatures", ylim=(0, 1.02))
    axes.set_title(f"log Z = {result.log_z:.2f} ± {result.std_err:.2f}" + ("" if result.reliable else ", UNRELIABLE"))
    axes.legend(fontsize=8)
    return figure
