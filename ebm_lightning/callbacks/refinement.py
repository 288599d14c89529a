"""Accuracy and energy after a few sampler steps from the test images."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics.aggregation import MeanMetric

from ebm_lightning.callbacks.base import Evaluation, Quota, Stage, chosen_sampler
from ebm_lightning.checks import check_integer
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import Sampler
from ebm_lightning.samplers.base import Progress


class Refinement(Evaluation):
    """Accuracy and energy of test images after k sampler steps that start at the images.

    Logs ``refine/accuracy_<k>`` and ``refine/energy_change_<k>``, the mean of E(x_k) - E(x_0) in nats, for each k, and
    ``refine/images``, the number of images. If images are typical samples of the model, neither changes much. If the
    energy falls by hundreds of nats, chains leave the data. With coordinates, chains move in u, and energies are those
    of u. Of several loaders it uses the first.

    References:
        Grathwohl et al. 2020, sec. 5.4 (JEM-k), and their ``test_clf --n_steps``. https://arxiv.org/abs/1912.03263

    Arguments:
        steps: All values of k. One run of the largest k measures all of them; 0 stands for the unchanged images.
        sampler: Moves the images; by default the module's.
        limit: Largest number of images, over all ranks; None for all.
        seed: Seed of the sampler; each rank has a separate stream.
        progress: Wraps the loop over steps of each batch, such as ``tqdm.tqdm``.

    Raises:
        ValueError: ``steps`` is empty or contains a negative number, or ``limit`` is below 1.
    """

    needs_labels = True

    def __init__(
        self,
        steps: Sequence[int] = (0, 1, 5, 20),
        sampler: Sampler | None = None,
        limit: int | None = 1000,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        check_integer("limit", limit, at_least=1, optional=True)
        if not steps:
            raise ValueError(f"'steps' should contain at least one number of steps, got {steps}.")
        for k in steps:
            check_integer("steps", k, at_least=0)
        self.steps = tuple(steps)
        self.sampler = sampler
        self.limit = limit
        self.seed = seed
        self.progress = progress
        self.metrics: dict[str, MeanMetric] = {}
        self._quota = Quota()
        self._generator = torch.Generator()

    def begin(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        names = [f"{what}_{k}" for what in ("accuracy", "energy_change") for k in self.steps if stage == "test"]
        self.metrics = {name: MeanMetric().to(module.device) for name in names}
        self._quota = self.quota(self.limit, stage, trainer)
        self._generator = make_generator(self.seed, trainer.global_rank, "refinement", device=module.device)

    def observe(self, stage: Stage, module: ConditionalEBM, outputs: Any, batch: Any) -> None:
        if not self.metrics:
            return
        x, y = self._quota.take(batch[0], batch[1])
        if not len(x):
            return
        with torch.autocast(module.device.type, enabled=False):
            u = module.coordinates(x)
            start = module.chain_energy(u)
            self._measure(0, module, u, y, start)
            longest = max(self.steps)
            if not longest:
                return
            sampler = chosen_sampler(module, self.sampler, longest)
            path = sampler.trajectory(module.chain_energy, u, support=module.support, generator=self._generator)
            steps = range(1, longest + 1)
            for k, state in zip((self.progress or iter)(steps), path, strict=True):
                self._measure(k, module, state.x, y, start)

    def report(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        if self.metrics:
            module.log_dict({f"refine/{name}": m.compute() for name, m in self.metrics.items()}, sync_dist=True)
            module.log("refine/images", float(self._quota.seen), sync_dist=True, reduce_fx="sum")

    def _measure(self, k: int, module: ConditionalEBM, u: Tensor, y: Tensor, start: Tensor) -> None:
        if k in self.steps:
            logits = module.chain_energy.logits(u)
            self.metrics[f"accuracy_{k}"].update((logits.argmax(1) == y).float())
            self.metrics[f"energy_change_{k}"].update(module.chain_energy.from_logits(logits, u) - start)
