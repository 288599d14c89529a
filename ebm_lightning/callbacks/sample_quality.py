"""FID, KID and Inception score of new samples, in the features of a given network."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from ebm_lightning.callbacks.base import Evaluation, Quota, Stage, TrainerRanks
from ebm_lightning.chains.initial import initial_points
from ebm_lightning.checks import check_integer
from ebm_lightning.evaluation.metrics import fid_and_kid, inception_score
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.modules.random_state import isolate_rng
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import Sampler, eval_mode
from ebm_lightning.samplers.base import Progress
from ebm_lightning.supports import Density


class SampleQuality(Evaluation):
    r"""FID, KID and Inception score of samples from new chains, at test.

    .. math:: FID = \|\mu - \mu'\|^2 + \mathrm{tr}(\Sigma + \Sigma' - 2 (\Sigma \Sigma')^{1/2})

    Logs ``samples/fid_<label>`` and ``samples/kid_<label>`` (lower is better), each with ``_std_err``, and
    given ``classifier`` also ``samples/is_<label>`` (higher is better). All depend on the network and on the number of
    images, FID most of all: it falls as the number grows. The values are therefore not comparable with published ones,
    which use the Inception network and 50 000 samples, and for joint energy models often samples from a replay buffer
    that were sorted by confidence.

    Test images with even index are the reference. Test images with odd index, as many as there are samples, are
    compared with the same reference. ``samples/fid_<label>_floor``, ``samples/kid_<label>_floor`` and
    ``samples/is_<label>_data`` are therefore the values that perfect samples would reach. The suffix ``_start`` marks
    the values of the chains' initial points, which samples have to improve on. ``samples/generated``,
    ``samples/reference`` and ``samples/held_out`` are the numbers of images. Of several loaders it uses the first.

    References:
        Heusel et al., GANs trained by a two time-scale update rule converge to a local Nash equilibrium, 2017.
        Binkowski et al., Demystifying MMD GANs, 2018. Salimans et al., Improved techniques for training GANs, 2016.

    Arguments:
        features: Maps images in the module's support to features (N, D), such as
            :class:`ebm_lightning.evaluation.features.Penultimate` of a classifier. Use the same for all models that
            are compared.
        classifier: Maps images to logits, for the Inception score. None does not compute it.
        label: Name of the network in the log.
        sampler: Moves the chains; by default the module's.
        steps: Steps of each chain; by default the sampler's own number.
        samples: Number of chains, over all ranks.
        initial: Fitted distribution of the initial points, such as ``module.chains.initial``; by default the support's
            reference density.
        limit: Largest number of test images, over all ranks; None for all.
        batch_size: Largest number of chains to run at once.
        seed: Seed of the chains, and of the subsets that KID and the Inception score draw.
        progress: Wraps the loop over batches of chains, such as ``tqdm.tqdm``.

    Raises:
        ValueError: A number is not positive, or ``samples`` is below 20. At test: fewer than 40 test images.
    """

    def __init__(
        self,
        features: nn.Module,
        classifier: nn.Module | None = None,
        label: str = "classifier",
        sampler: Sampler | None = None,
        steps: int | None = None,
        samples: int = 1000,
        *,
        initial: Density | None = None,
        limit: int | None = None,
        batch_size: int = 250,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        check_integer("steps", steps, at_least=1, optional=True)
        check_integer("limit", limit, at_least=1, optional=True)
        check_integer("batch_size", batch_size, at_least=1)
        check_integer("samples", samples, at_least=20, remedy="The covariance of fewer is too noisy.")
        self.features = features
        self.classifier = classifier
        self.label = label
        self.sampler = sampler
        self.steps = steps
        self.samples = samples
        self.initial = initial
        self.limit = limit
        self.batch_size = batch_size
        self.seed = seed
        self.progress = progress
        self._active = False
        self._quota = Quota()
        self._seen: dict[str, list[Tensor]] = {}

    def begin(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        self._active = stage == "test"
        self._quota = self.quota(self.limit, stage, trainer)
        self._seen = {f"{kind}{of}": [] for kind in ("", "logits_") for of in ("real", "fresh", "start")}

    def observe(self, stage: Stage, module: ConditionalEBM, outputs: Any, batch: Any) -> None:
        if not self._active:
            return
        if not self._quota.seen:
            # At the first batch, because weight averaging may restore the training weights before the epoch ends.
            for x in self._fresh(module).split(self.batch_size):
                self._record(x, "fresh", module.device)
            for x in self._initial_points(module):
                self._record(x, "start", module.device)
        (x,) = self._quota.take(batch[0])
        if len(x):
            self._record(x, "real", module.device)

    def report(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        if not self._active:
            return
        local = {name: torch.cat(parts).cpu() for name, parts in self._seen.items() if parts}
        ranks = TrainerRanks(trainer).all_gather(local)
        gathered = {name: torch.cat([part[name] for part in ranks]) for name in local}
        for name, value in self.metrics(**gathered).items():
            module.log(f"samples/{name}", value, sync_dist=True)

    def metrics(
        self,
        real: Tensor,
        fresh: Tensor,
        logits_real: Tensor | None = None,
        logits_fresh: Tensor | None = None,
        start: Tensor | None = None,
        logits_start: Tensor | None = None,
    ) -> dict[str, float]:
        """The metrics that are logged, without the prefix ``samples/``. The global random state does not change.

        Arguments:
            real, fresh, start: Features of test images, samples and initial points, shape (N, D).
            logits_real, logits_fresh, logits_start: Their logits, shape (N, K), for the Inception score.

        Raises:
            ValueError: Fewer than 40 test images.
        """
        if len(real) < 40:
            raise ValueError(
                f"'limit' should leave at least 40 test images for SampleQuality, got {len(real)}. Raise it, or use a "
                "larger test set."
            )
        reference, held_out = real[::2], _spread(real[1::2], len(fresh))
        with isolate_rng(), torch.inference_mode(False):
            torch.manual_seed(make_generator(self.seed, "subsets").initial_seed())
            metrics = fid_and_kid(reference, fresh, self.label, "")
            metrics |= fid_and_kid(reference, held_out, self.label, "_floor")
            if logits_real is not None and logits_fresh is not None:
                metrics |= inception_score(logits_fresh, self.label, "")
                metrics |= inception_score(_spread(logits_real[1::2], len(fresh)), self.label, "_data")
            if start is not None:  # last, so that the subsets of other metrics do not depend on it
                metrics |= fid_and_kid(reference, start, self.label, "_start")
            if logits_start is not None:
                metrics |= inception_score(logits_start, self.label, "_start")
        counts = {"generated": len(fresh), "reference": len(reference), "held_out": len(held_out)}
        return metrics | {name: float(n) for name, n in counts.items()}

    def _fresh(self, module: ConditionalEBM) -> Tensor:
        return module.sample(
            self._num_chains(module),
            steps=self.steps,
            sampler=self.sampler,
            initial=self.initial or module.support,
            generator=make_generator(self.seed, module.trainer.global_rank, "sample quality", device=module.device),
            batch_size=self.batch_size,
            progress=self.progress,
        )

    def _initial_points(self, module: ConditionalEBM) -> Iterator[Tensor]:
        """Batches of as many initial points as there are chains; other draws than those that the chains start at."""
        generator = make_generator(self.seed, module.trainer.global_rank, "starts", device=module.device)
        for i in range(0, n := self._num_chains(module), self.batch_size):
            u = initial_points(self.initial, module.support, min(self.batch_size, n - i), generator=generator)
            yield module.coordinates.inv(u)

    def _num_chains(self, module: ConditionalEBM) -> int:
        """Number of chains of this rank."""
        return len(range(module.trainer.global_rank, self.samples, module.trainer.world_size))

    def _record(self, x: Tensor, name: str, device: torch.device) -> None:
        """Store features and logits of ``x``."""
        networks = {name: self.features, f"logits_{name}": self.classifier}
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for key, network in networks.items():
                if network is not None:
                    with eval_mode(network):
                        self._seen[key].append(network.to(device)(x).flatten(1).double())


def _spread(rows: Tensor, n: int) -> Tensor:
    """``n`` rows, spread evenly; all of them if there are fewer."""
    return rows[:: max(1, len(rows) // n)][:n]
