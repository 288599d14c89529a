"""What becomes of the classifier when its inputs first take a few steps down the energy."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics.aggregation import MeanMetric

from ebm_lightning.callbacks.evaluation import Evaluation, Quota, Stage, check_positive
from ebm_lightning.callbacks.fresh import Progress, chain_sampler
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.samplers import Sampler
from ebm_lightning.streams import make_generator


class Refinement(Evaluation):
    """Accuracy and energy of test images after k steps of the sampler, started at the images themselves.

    Logs ``refine/accuracy_<k>`` and ``refine/energy_change_<k>``, the mean of E(x_k) - E(x_0) in nats, for each k, and
    ``refine/images``. Where images are typical of the model, neither moves much; an energy that falls by hundreds of
    nats says that chains run away from the data.

    References:
        Grathwohl et al. 2020, sec. 5.4 (JEM-k), and their ``test_clf --n_steps``. https://arxiv.org/abs/1912.03263

    Arguments:
        steps: Each k; one run of the longest gives all of them. 0 is the images as they are.
        sampler: Moves the images; the module's own by default.
        limit: Most images, over all ranks; all where it is None.
        seed: Of the sampler; each rank has its own stream.
        progress: Wraps the loop over steps of each batch, such as ``tqdm.tqdm``.

    Raises:
        ValueError: A negative k, or none.
    """

    def __init__(
        self,
        steps: Sequence[int] = (0, 1, 5, 20),
        sampler: Sampler | None = None,
        limit: int | None = 1000,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        check_positive(limit=limit)
        if not steps or min(steps) < 0:
            raise ValueError(f"'steps' should be numbers of steps, 0 or positive, got {tuple(steps)}.")
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
            logits = module.energy.logits(x)
            start = module.energy.from_logits(logits, x)
            self._measure(0, module, x, y, start)
            longest = max(self.steps)
            if not longest:
                return
            sampler = chain_sampler(module, self.sampler, longest)
            path = sampler.trajectory(module.energy, x, support=module.support, generator=self._generator)
            steps = range(1, longest + 1)
            for k, state in zip(self.progress(steps) if self.progress else steps, path, strict=True):
                self._measure(k, module, state.x, y, start)

    def report(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        if self.metrics:
            module.log_dict({f"refine/{name}": m.compute() for name, m in self.metrics.items()}, sync_dist=True)
            module.log("refine/images", float(self._quota.seen), sync_dist=True, reduce_fx="sum")

    def _measure(self, k: int, module: ConditionalEBM, x: Tensor, y: Tensor, start: Tensor) -> None:
        if k in self.steps:
            logits = module.energy.logits(x)
            self.metrics[f"accuracy_{k}"].update((logits.argmax(1) == y).float())
            self.metrics[f"energy_change_{k}"].update(module.energy.from_logits(logits, x) - start)
