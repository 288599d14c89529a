"""Whether new chains are draws of the model: they are compared with annealed ones."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from ebm_lightning.callbacks.ais_log_z import AISLogZ
from ebm_lightning.callbacks.base import Evaluation, Stage
from ebm_lightning.checks import check_integer
from ebm_lightning.evaluation.two_samples import class_distance, energy_gap, two_sample_accuracy
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import Sampler
from ebm_lightning.supports import Density


class SampleAgreement(Evaluation):
    r"""Compares new chains with the weighted chains of annealed importance sampling, at test.

    Annealed chains, with their weights, have the distribution of the model if log Z is reliable. New chains have it
    only if they ran long enough. Logs

    - ``agreement/energy_gap``: mean energy of new chains minus that of the annealed ones, in nats, and its standard
      error ``agreement/energy_gap_std_err``. It is positive where chains have not arrived.
    - ``agreement/class_distance``: total variation distance of the shares of classes among new chains from Z_y / Z, and
      ``agreement/class_distance_noise``, what the number of chains alone would give.
    - ``agreement/two_sample_accuracy``: how often a classifier tells new from annealed chains, on held-out chains, and
      ``agreement/two_sample_std_err``. It is 1/2 if nothing distinguishes them.

    With coordinates, chains are compared in u. All values are for temperature 1, so for a model whose chains run at
    another temperature they are large.

    References:
        Lopez-Paz & Oquab, Revisiting classifier two-sample tests, 2017. https://arxiv.org/abs/1610.06545

    Arguments:
        ais: The callback that estimates log Z. It has to come before this one in the list of callbacks.
        samples: Number of new chains.
        steps: Steps of each; by default the sampler's own number.
        sampler: Moves them; by default the module's.
        initial: Distribution of their initial points; by default the support's reference density.
        seed: Seed of the chains.

    Raises:
        ValueError: ``samples`` is below 20. At setup: ``ais`` comes after this callback.
    """

    def __init__(
        self,
        ais: AISLogZ,
        samples: int = 1000,
        steps: int | None = None,
        sampler: Sampler | None = None,
        initial: Density | None = None,
        seed: int = 0,
    ) -> None:
        check_integer("samples", samples, at_least=20)
        check_integer("steps", steps, at_least=1, optional=True)
        self.ais = ais
        self.samples = samples
        self.steps = steps
        self.sampler = sampler
        self.initial = initial
        self.seed = seed
        self.metrics: dict[str, float] = {}

    def begin(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        self.metrics = {}

    def observe(self, stage: Stage, module: ConditionalEBM, outputs: Any, batch: Any) -> None:
        # At the first batch, because weight averaging may restore the training weights before the epoch ends.
        if stage == "test" and not self.metrics and module.trainer.is_global_zero:
            self.metrics = self.measure(module)

    def report(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        for name, value in self.metrics.items():
            module.log(f"agreement/{name}", value, batch_size=1, rank_zero_only=True)

    def measure(self, module: ConditionalEBM) -> dict[str, float]:
        """The metrics that are logged, without the prefix ``agreement/``.

        Raises:
            ValueError: ``ais`` has no result yet.
        """
        result = self.ais.result
        if result is None or not len(result.samples):
            raise ValueError(
                "'ais' should have run before SampleAgreement, got no result. Put the same AISLogZ before it in the "
                "trainer's callbacks."
            )
        with torch.autocast(module.device.type, enabled=False), torch.no_grad():
            fresh = self._fresh(module)
            annealed = result.samples.to(module.device)
            logits = module.chain_energy.logits(fresh)
            gap = energy_gap(
                module.chain_energy.from_logits(logits, fresh).cpu(),
                module.chain_energy(annealed).cpu(),
                result.log_weights,
            )
        distance = class_distance(logits.log_softmax(1).cpu(), result.prior)
        test = two_sample_accuracy(fresh.flatten(1), annealed.flatten(1), result.log_weights, seed=self.seed)
        return {
            "energy_gap": gap[0],
            "energy_gap_std_err": gap[1],
            "class_distance": distance[0],
            "class_distance_noise": distance[1],
            "two_sample_accuracy": test[0],
            "two_sample_std_err": test[1],
        }

    def _fresh(self, module: ConditionalEBM) -> Tensor:
        x = module.sample(
            self.samples,
            steps=self.steps,
            sampler=self.sampler,
            initial=self.initial or module.support,
            generator=make_generator(self.seed, "sample agreement", device=module.device),
        )
        return module.coordinates(x)
