"""How far fresh samples are from test images, in the features of a stated network."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from ebm_lightning.callbacks.ais_log_z import gather
from ebm_lightning.callbacks.evaluation import Evaluation, Quota, Stage, check_positive
from ebm_lightning.callbacks.fresh import Progress, chain_sampler, fresh_samples
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.samplers import Sampler, eval_mode
from ebm_lightning.starts import Start, first_places
from ebm_lightning.streams import make_generator


class SampleQuality(Evaluation):
    r"""FID, KID and Inception score at test of samples from new chains.

    .. math:: FID = \|\mu - \mu'\|^2 + \mathrm{tr}(\Sigma + \Sigma' - 2 (\Sigma \Sigma')^{1/2})

    Logs ``samples/fid_<label>`` and ``samples/kid_<label>`` (lower is better) with ``samples/kid_std_<label>``, and
    given ``classifier`` ``samples/is_<label>`` (higher is better). All depend on the network and on the number of
    images, FID most of all: it falls as they grow. Published figures are therefore another thing: they come from the
    Inception network, 50 000 samples, and in this field often from a replay buffer that was sorted by confidence.

    The even test images are the reference. As many of the odd ones as there are samples are held against the same
    reference: ``samples/fid_<label>_floor``, ``samples/kid_<label>_floor`` and ``samples/is_<label>_data`` are what
    perfect samples would reach; ``_start`` marks what the chains' first places reach, which they have to better.
    ``samples/generated``, ``samples/reference`` and ``samples/held_out`` count the images.

    References:
        Heusel et al., GANs trained by a two time-scale update rule converge to a local Nash equilibrium, 2017.
        Binkowski et al., Demystifying MMD GANs, 2018. Salimans et al., Improved techniques for training GANs, 2016.

    Arguments:
        features: Maps images in the module's support to features (N, D), such as
            :class:`ebm_lightning.features.Penultimate` of a classifier; one and the same for all models compared.
        classifier: Maps images to logits, for the Inception score, which is left out without it.
        label: Names the network in the log.
        sampler: Moves the chains; the module's own by default.
        steps: Steps of each chain in place of the sampler's own number.
        samples: Number of chains, over all ranks.
        start: Where chains begin, fitted, such as ``module.chains.start``; by default the support's reference density.
        limit: Most test images, over all ranks; all by default.
        batch_size: Most chains to run at once.
        seed: Of chains and of the subsets that KID and the Inception score draw.
        progress: Wraps the loop over batches of chains, such as ``tqdm.tqdm``.

    Raises:
        ValueError: A number that is not positive, or fewer than 20 samples.
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
        start: Start | None = None,
        limit: int | None = None,
        batch_size: int = 250,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        check_positive(steps=steps, limit=limit, batch_size=batch_size)
        if samples < 20:
            raise ValueError(f"'samples' should be at least 20, got {samples}: fewer have no covariance to speak of.")
        self.features = features
        self.classifier = classifier
        self.label = label
        self.sampler = sampler
        self.steps = steps
        self.samples = samples
        self.start = start
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
        if not self._quota.seen:  # not at the epoch's end: weight averaging may by then have its weights back
            for x in self._fresh(module).split(self.batch_size):
                self._look(x, "fresh", module.device)
            for x in self._starts(module):
                self._look(x, "start", module.device)
        (x,) = self._quota.take(batch[0])
        if len(x):
            self._look(x, "real", module.device)

    def report(self, stage: Stage, trainer: L.Trainer, module: ConditionalEBM) -> None:
        if not self._active:
            return
        mine = {name: torch.cat(parts).cpu() for name, parts in self._seen.items() if parts}
        ranks = gather({trainer.global_rank: mine})
        everything = {name: torch.cat([ranks[k][name] for k in sorted(ranks)]) for name in mine}
        for name, value in self.figures(**everything).items():
            module.log(f"samples/{name}", value, sync_dist=True)

    def figures(
        self,
        real: Tensor,
        fresh: Tensor,
        logits_real: Tensor | None = None,
        logits_fresh: Tensor | None = None,
        start: Tensor | None = None,
        logits_start: Tensor | None = None,
    ) -> dict[str, float]:
        """What is logged, under ``samples/``, from features (N, D) and logits (N, K); global randomness is untouched.

        Raises:
            ValueError: Fewer than 40 test images.
        """
        if len(real) < 40:
            raise ValueError(f"'limit' should leave at least 40 test images to SampleQuality, got {len(real)}.")
        reference, held_out = real[::2], _spread(real[1::2], len(fresh))
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            torch.manual_seed(make_generator(self.seed, "subsets").initial_seed())
            figures = _distances(reference, fresh, self.label, "")
            figures |= _distances(reference, held_out, self.label, "_floor")
            if logits_real is not None and logits_fresh is not None:
                figures |= _inception_score(logits_fresh, self.label, "")
                figures |= _inception_score(_spread(logits_real[1::2], len(fresh)), self.label, "_data")
            if start is not None:  # last, so that it moves no other figure's subsets
                figures |= _distances(reference, start, self.label, "_start")
            if logits_start is not None:
                figures |= _inception_score(logits_start, self.label, "_start")
        counts = {"generated": len(fresh), "reference": len(reference), "held_out": len(held_out)}
        return figures | {name: float(n) for name, n in counts.items()}

    def _fresh(self, module: ConditionalEBM) -> Tensor:
        return fresh_samples(
            module,
            self._share(module),
            chain_sampler(module, self.sampler, self.steps),
            make_generator(self.seed, module.trainer.global_rank, "sample quality", device=module.device),
            start=self.start,
            batch_size=self.batch_size,
            progress=self.progress,
        )

    def _starts(self, module: ConditionalEBM) -> Iterator[Tensor]:
        """As many first places as there are chains, but not theirs: drawn apart, in batches."""
        generator = make_generator(self.seed, module.trainer.global_rank, "starts", device=module.device)
        for i in range(0, n := self._share(module), self.batch_size):
            yield first_places(self.start, module.support, min(self.batch_size, n - i), generator=generator)

    def _share(self, module: ConditionalEBM) -> int:
        """How many of the chains are this rank's."""
        return len(range(module.trainer.global_rank, self.samples, module.trainer.world_size))

    def _look(self, x: Tensor, name: str, device: torch.device) -> None:
        networks = {name: self.features, f"logits_{name}": self.classifier}
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for key, network in networks.items():
                if network is not None:
                    with eval_mode(network):
                        self._seen[key].append(network.to(device)(x).flatten(1).double())


class _Seen(nn.Identity):
    """Features that are there already, for torchmetrics."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def _spread(rows: Tensor, n: int) -> Tensor:
    """``n`` rows, or all there are, spread evenly."""
    return rows[:: max(1, len(rows) // n)][:n]


def _distances(real: Tensor, fake: Tensor, label: str, suffix: str) -> dict[str, float]:
    """FID and KID between features (N, D) and (M, D)."""
    seen = _Seen(real.shape[1])
    fid = FrechetInceptionDistance(seen, sync_on_compute=False)
    kid = _quietly(KernelInceptionDistance, seen, subset_size=min(500, len(real), len(fake)), sync_on_compute=False)
    for metric in (fid, kid):
        metric.update(real, real=True)
        metric.update(fake, real=False)
    mean, std = kid.compute()
    figures = {f"fid_{label}{suffix}": float(fid.compute()), f"kid_{label}{suffix}": float(mean)}
    return figures if suffix else figures | {f"kid_std_{label}": float(std)}


def _inception_score(logits: Tensor, label: str, suffix: str) -> dict[str, float]:
    """exp E KL(p(y|x) || p(y)) from logits (N, K)."""
    metric = _quietly(InceptionScore, _Seen(logits.shape[1]), splits=min(10, len(logits) // 10), sync_on_compute=False)
    metric.update(logits)
    return {f"is_{label}{suffix}": float(metric.compute()[0])}


def _quietly(metric: Callable[..., Metric], *args: Any, **kwargs: Any) -> Metric:
    """Made without the warning that it keeps all features, which is what a few thousand images are kept for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*will save all extracted features")
        return metric(*args, **kwargs)
