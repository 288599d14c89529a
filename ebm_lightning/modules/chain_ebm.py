"""A conditional energy model with MCMC chains: how they start, move, restart and resume."""

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

from ebm_lightning.chains import Chains, ReplayBuffer
from ebm_lightning.chains.step import ChainStep
from ebm_lightning.checks import check_integer
from ebm_lightning.coordinates import Coordinates
from ebm_lightning.energies import tilt_of
from ebm_lightning.modules.conditional import ConditionalEBM
from ebm_lightning.resume.hparams import rebuild
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import SGLD, Adaptation, BlockGibbs, Compute, NoiseRefresh, Sampler, eval_mode
from ebm_lightning.samplers.adaptation import AdaptedSampler
from ebm_lightning.supports import Support


class ChainEBM(ConditionalEBM):
    """A :class:`ConditionalEBM` whose loss needs samples of the model: the base class of :class:`JEM`.

    It holds chains of p(x) and chains of p(x|y), made from the same ``chains``. :meth:`negatives` draws their initial
    points, runs the sampler, stores the final points and returns them. A subclass calls it in its loss, and returns
    from :meth:`running_chains` those of the two that the loss needs.

    Arguments:
        classifier, num_classes: As for :class:`ConditionalEBM`.
        support, sampler, chains, compute, seed, coordinates, adaptation: As for :class:`JEM`.
        arguments: Other arguments of :class:`ConditionalEBM`.

    Attributes:
        chains: Chains of p(x).
        class_chains: Chains of p(x|y).
        chain_step: What the last training step did with its chains; None before the first.

    Raises:
        ValueError: There is neither a support nor coordinates, or an error of :class:`ConditionalEBM`.
    """

    def __init__(
        self,
        classifier: nn.Module,
        num_classes: int,
        support: Support | None = None,
        sampler: Sampler | None = None,
        chains: Chains | None = None,
        *,
        compute: Compute | None = None,
        seed: int | None = None,
        coordinates: Coordinates | None = None,
        adaptation: Adaptation | None = None,
        **arguments: Any,
    ) -> None:
        if support is None and coordinates is None:
            raise ValueError("'support' should be given, such as Box(-1, 1, shape), got None without coordinates.")
        super().__init__(classifier, num_classes, support, coordinates=coordinates, **arguments)
        self.adapted_sampler = AdaptedSampler(
            rebuild(sampler, Sampler, "sampler") or SGLD.jem(), rebuild(adaptation, Adaptation, "adaptation")
        )
        self.chains: Chains = rebuild(chains, Chains, "chains") or ReplayBuffer()
        self.class_chains = copy.deepcopy(self.chains)
        self.class_chains.initial = self.chains.initial  # the same object, so that it is fitted once
        self.compute: Compute | None = rebuild(compute, Compute, "compute")
        self.seed: int | None = check_integer("seed", seed, optional=True)
        self.chain_step: ChainStep | None = None

    @property
    def sampler(self) -> Sampler:
        """Moves the chains, with the adapted step size. Setting it restarts the adaptation."""
        return self.adapted_sampler.current

    @sampler.setter
    def sampler(self, sampler: Sampler) -> None:
        self.adapted_sampler.restart(sampler)

    # One training step.

    def negatives(self, u: Tensor, y: Tensor | None = None) -> Tensor:
        """One negative for each row of ``u``, in coordinates, detached: from p(u), or from p(u|y) if ``y`` is given."""
        chains = self.chains if y is None else self.class_chains
        energy = self.chain_energy if y is None else functools.partial(self.chain_energy, y=y)
        start, index = chains.draw(len(u), y, self.generator, data=u)
        start = chains.reweight(index, start, functools.partial(self._log_tilt, y=y), self.generator)
        where = {"support": self.support, "generator": self.generator, "compute": self.compute}
        state, repeats = self.adapted_sampler.run(energy, start, u, **where)
        chains.store(index, state.x)
        self.chain_step = ChainStep(chains, index, state, repeats)
        return state.x

    @torch.no_grad()
    def _log_tilt(self, u: Tensor, y: Tensor | None) -> Tensor:
        """log p(u) - log q(u), or log p(u, y) - log q(u), up to log Z, shape (N,)."""
        with eval_mode(self.energy):
            return tilt_of(self.chain_energy.logits(u), y)

    def chains_follow_gradients(self) -> bool:
        return bool(self.running_chains()) and not isinstance(self.sampler, BlockGibbs | NoiseRefresh)

    # Start and restart.

    def start_chains(self) -> None:
        """Seed this rank's generator and set up its chains. ``fit`` calls it; a hand-written loop has to."""
        self.generator = self._make_generator("chains")
        for name, chains in self.running_chains().items():
            chains.setup(self.support, self._classes_of(name), self.generator)

    def place_chains(self) -> None:
        for name, chains in self.running_chains().items():
            chains.place(self.support, self._classes_of(name))

    def restart_chains(self, attempt: int, factor: float = 1.0) -> None:
        """After a divergence: reinitialize the chains that moved last, reseed the sampler and scale its step.

        Arguments:
            attempt: Number of the random stream; use each number once.
            factor: Scales the sampler's step; the distribution that it targets does not change.
        """
        self.generator = self._make_generator("chains", attempt)
        if self.chain_step is not None:
            self.chain_step.chains.reinitialize(self.chain_step.index, self.generator)
        self.adapted_sampler.scale_step(factor)

    def _classes_of(self, chains: str) -> int | None:
        return self.num_classes if chains == "class_chains" else None

    def _make_generator(self, *stream: str | int) -> torch.Generator:
        """This rank's generator for the stream of that name."""
        seed = torch.initial_seed() if self.seed is None else self.seed
        return make_generator(seed, self.global_rank, *stream, device=self.device)

    # Lightning's hooks.

    def prepare_fit(self) -> None:
        if self.running_chains() and self.trainer.precision in ("bf16-true", "16-true"):
            raise RuntimeError(
                f"'precision' should be bf16-mixed or 32-true while chains run, got {self.trainer.precision}: with "
                "weights and data in half precision, an energy of 300 is rounded to a multiple of 2."
            )
        super().prepare_fit()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        step = self.chain_step
        if step is not None and step.energy_pos is not None and step.energy_neg is not None:
            energies = {"train/energy_pos": step.energy_pos, "train/energy_neg": step.energy_neg}
            self.log_dict(energies)
        return loss

    def derived_hyperparameters(self) -> dict[str, Any]:
        return {"implied_temperature": self.sampler.implied_temperature}
