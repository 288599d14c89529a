"""Metrics that are reduced over batches and ranks."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance
from torchmetrics.utilities import dim_zero_cat

from ebm_lightning.evaluation.error_bars import auroc_std_err, fid_std_err, fpr_std_err, kid_std_err, placements


class OODScores(Metric):
    """AUROC, FPR95 and AUPR of a score that should be larger for in-distribution data.

    Scores are any real numbers, also infinite ones. AUROC and AUPR use their ranks, because torchmetrics applies a
    sigmoid to scores, which rounds logits of 20 and 200 to the same 1.0. ``compute`` returns

    - ``auroc``: the probability that in-distribution data score higher, where ties count half. 0.5 is chance.
    - ``auroc_std_err``: its standard error, from the numbers of data, see
      :func:`ebm_lightning.evaluation.error_bars.auroc_std_err`.
    - ``fpr95``: the fraction of out-of-distribution data at or above the largest threshold that keeps at least 95 % of
      the in-distribution data. 0 is best, and 0.95 or more is chance. Nothing is interpolated, so ties count as
      accepted.
    - ``fpr95_std_err``: its standard error, from the numbers of data, see
      :func:`ebm_lightning.evaluation.error_bars.fpr_std_err`.
    - ``aupr_in`` and ``aupr_out``: the area under the curve of precision and recall, of finding in-distribution data by
      high scores, and out-of-distribution data by low scores. 1 is best. Chance is their share of all data, so values
      depend on the numbers of data.

    References:
        Hendrycks & Gimpel 2017. https://arxiv.org/abs/1610.02136
        Liang, Li & Srikant, Enhancing the reliability of out-of-distribution image detection, 2018, for FPR95.
        https://arxiv.org/abs/1706.02690

    Raises:
        ValueError: A score is NaN.
    """

    full_state_update = False
    higher_is_better = True
    inside: list[Tensor]
    outside: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("inside", default=[], dist_reduce_fx="cat")
        self.add_state("outside", default=[], dist_reduce_fx="cat")

    def update(self, inside: Tensor, outside: Tensor) -> None:
        """Add in-distribution scores (N,) and out-of-distribution scores (M,). Either may be empty."""
        for name, scores in (("inside", inside), ("outside", outside)):
            if torch.isnan(scores).any():
                raise ValueError(f"'{name}' should hold no NaN, got {int(torch.isnan(scores).sum())} of {len(scores)}.")
        self.inside.append(inside)
        self.outside.append(outside)

    def scores(self) -> tuple[Tensor, Tensor]:
        """All in-distribution and out-of-distribution scores so far; of every rank once the metric is synchronized."""
        return dim_zero_cat(self.inside), dim_zero_cat(self.outside)

    def compute(self) -> dict[str, Tensor]:
        inside, outside = self.scores()
        errors = auroc_std_err(*placements(inside, outside)), fpr_std_err(inside, outside, _kept(inside))
        auroc_error, fpr_error = torch.tensor(errors, dtype=torch.float64, device=inside.device)
        return {
            "auroc": _auroc(inside, outside),
            "auroc_std_err": auroc_error,
            "fpr95": _fpr95(inside, outside),
            "fpr95_std_err": fpr_error,
            "aupr_in": _aupr(inside, outside),
            "aupr_out": _aupr(-outside, -inside),
        }


def _auroc(inside: Tensor, outside: Tensor) -> Tensor:
    return binary_auroc(*_ranks(inside, outside))


def _aupr(positive: Tensor, negative: Tensor) -> Tensor:
    return binary_average_precision(*_ranks(positive, negative))


def _ranks(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks of the scores in [0, 1], and 1 for the positive ones, else 0."""
    target = torch.cat([torch.ones_like(positive), torch.zeros_like(negative)]).long()
    ranks = torch.cat([positive, negative]).unique(return_inverse=True)[1]
    return ranks.double() / max(1, int(ranks.max())), target


def _fpr95(inside: Tensor, outside: Tensor) -> Tensor:
    threshold = inside.sort(descending=True).values[_kept(inside) - 1]
    return (outside >= threshold).double().mean()


def _kept(inside: Tensor) -> int:
    return -(-95 * len(inside) // 100)  # ceil(0.95 n) in integers: in floating point it may be one too large


def bits_per_dim(nats: float, shape: tuple[int, ...], width: float, num_levels: int) -> float:
    r"""Bits per dimension of dequantized images.

    .. math:: -\frac{\log p(x)}{D \log 2} + \log_2 \frac{Q}{high - low}

    References:
        Theis, van den Oord & Bethge, A note on the evaluation of generative models, 2016.

    Arguments:
        nats: Mean log p(x), in nats per image.
        shape: Shape of one image; D is its number of elements.
        width: Width of the box of the images, high - low.
        num_levels: Integer levels Q of the data before dequantization.
    """
    return -nats / (math.prod(shape) * math.log(2)) + math.log2(num_levels / width)


def fid_and_kid(real: Tensor, fake: Tensor, label: str, suffix: str) -> dict[str, float]:
    r"""FID and KID between features (N, D) and (M, D), named ``fid_<label><suffix>`` and ``kid_<label><suffix>``.

    Without a suffix also ``fid_<label>_std_err`` and ``kid_<label>_std_err``, from the number of samples.

    .. math:: FID = \|\mu - \mu'\|^2 + \mathrm{tr}(\Sigma + \Sigma' - 2 (\Sigma \Sigma')^{1/2})

    References:
        Heusel et al., GANs trained by a two time-scale update rule converge to a local Nash equilibrium, 2017.
        Binkowski et al., Demystifying MMD GANs, 2018.
    """
    features = _Features(real.shape[1])
    fid = FrechetInceptionDistance(features, sync_on_compute=False)
    kid = _without_warning(
        KernelInceptionDistance, features, subset_size=min(500, len(real), len(fake)), sync_on_compute=False
    )
    for metric in (fid, kid):
        metric.update(real, real=True)
        metric.update(fake, real=False)
    mean, _ = kid.compute()
    metrics = {f"fid_{label}{suffix}": float(fid.compute()), f"kid_{label}{suffix}": float(mean)}
    if suffix:
        return metrics
    errors = {f"fid_{label}_std_err": fid_std_err(real, fake), f"kid_{label}_std_err": kid_std_err(real, fake)}
    return metrics | errors


def inception_score(logits: Tensor, label: str, suffix: str) -> dict[str, float]:
    """The Inception score exp E KL(p(y|x) || p(y)) from logits (N, K), named ``is_<label><suffix>``."""
    splits = min(10, len(logits) // 10)
    metric = _without_warning(InceptionScore, _Features(logits.shape[1]), splits=splits, sync_on_compute=False)
    metric.update(logits)
    return {f"is_{label}{suffix}": float(metric.compute()[0])}


def _without_warning(metric: Callable[..., Metric], *args: Any, **kwargs: Any) -> Metric:
    """The metric, created without its warning about memory: features of a few thousand images are small."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*will save all extracted features")
        return metric(*args, **kwargs)


class _Features(nn.Identity):
    """Passes precomputed features to torchmetrics, which expects a network."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
