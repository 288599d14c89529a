"""Standard errors of metrics, from the number of images that they were measured on."""

import math

import torch
from torch import Tensor

from ebm_lightning.rng import make_generator

Z = 1.96
"""Standard errors in half of a 95 % interval."""


def wilson(fraction: float, n: float) -> tuple[float, float]:
    """The 95 % Wilson interval of a fraction of ``n`` images. Unlike the normal one, it has a width at 0 and 1.

    References:
        Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    center = (fraction + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(fraction * (1 - fraction) / n + Z**2 / (4 * n**2))
    return max(0.0, center - half), min(1.0, center + half)


def fraction_std_err(fraction: float, n: float) -> float:
    """Half the width of the Wilson interval in standard errors, which is positive at 0 and 1 too."""
    low, high = wilson(fraction, n)
    return (high - low) / (2 * Z)


def mean_std_err(values: Tensor) -> float:
    """Standard error of the mean of ``values`` (N,); NaN for fewer than 2."""
    return float(values.double().std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def accuracy_difference(correct: Tensor, other: Tensor) -> tuple[float, float]:
    """Difference of two accuracies on the same images, and its standard error.

    Only images on which the models disagree count. One half is added to both kinds of disagreement, as Agresti and Min
    do, so that a handful of them does not look like certainty.

    References:
        Agresti & Min, Simple improved confidence intervals for comparing matched proportions, 2005.

    Arguments:
        correct: Whether the model is right about each image, shape (N,).
        other: The same for the other model.
    """
    n, gained, lost = len(correct), int((correct & ~other).sum()), int((other & ~correct).sum())
    variance = gained + lost + 1 - (gained - lost) ** 2 / (n + 2)
    return (gained - lost) / n, math.sqrt(variance) / (n + 2)


def calibration_error(confidence: Tensor, correct: Tensor, bins: int) -> Tensor:
    """Expected calibration error over equal bins of confidence, from ``confidence`` and ``correct`` (N,)."""
    bin_of = (confidence * bins).ceil().clamp(1, bins).long() - 1
    gap = correct.double() - confidence.double()
    return torch.bincount(bin_of, gap, bins).abs().sum() / len(gap)


def ece_resamples(confidence: Tensor, correct: Tensor, bins: int, resamples: int = 200, seed: int = 0) -> Tensor:
    """Expected calibration errors of bootstrap resamples of the images, shape (resamples,).

    Two models with the same ``seed`` and number of images get the same resamples, so that their difference is paired.

    Arguments:
        confidence: max p(y|x) of each image, shape (N,).
        correct: Whether the model is right about each image, shape (N,).
        bins: Number of equal bins of confidence in [0, 1].
        resamples: Number of resamples.
        seed: Seed of the resamples.
    """
    n, generator = len(confidence), make_generator(seed, "bootstrap")
    rows = [torch.randint(n, (n,), generator=generator) for _ in range(resamples)]
    return torch.stack([calibration_error(confidence[chosen], correct[chosen], bins) for chosen in rows])


def placements(inside: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    """For each score, the fraction of the other set that it ranks correctly against; ties count half.

    The mean of either is the AUROC.

    Returns:
        Shapes (N,) and (M,) for in-distribution scores (N,) and out-of-distribution scores (M,).
    """
    return 1 - _fraction_above(inside, outside), _fraction_above(outside, inside)


def auroc_std_err(of_inside: Tensor, of_outside: Tensor) -> float:
    """Standard error of an AUROC, or of the difference of two, from (differences of) placements.

    It is at least what half an image of the smaller set changes: the estimate is 0 where no scores overlap.

    References:
        DeLong, DeLong & Clarke-Pearson, Comparing the areas under two or more correlated receiver operating
        characteristic curves: a nonparametric approach, 1988.
    """
    floor = 0.5 / min(len(of_inside), len(of_outside))
    parts = [mean_std_err(part) for part in (of_inside, of_outside)]
    return max(math.hypot(*parts), floor)


def fpr_std_err(inside: Tensor, outside: Tensor, kept: int, resamples: int = 200, seed: int = 0) -> float:
    """Standard error of the fraction of ``outside`` at or above the ``kept``-th largest of ``inside``.

    That of a bootstrap of both sets. A resample's threshold is one of the scores ``inside``. Its rank is that of an
    order statistic of uniform numbers, which has a beta distribution. It is positive at 0 and 1 too.

    References:
        Efron, Bootstrap methods: another look at the jackknife, 1979, for the bootstrap of quantiles.

    Arguments:
        inside: Scores of in-distribution data, shape (N,).
        outside: Scores of out-of-distribution data, shape (M,).
        kept: How many of ``inside`` the threshold keeps.
        resamples: Number of thresholds.
        seed: Their seed.
    """
    n, m = len(inside), len(outside)
    generator = make_generator(seed, "thresholds")
    below, above = (
        torch._standard_gamma(torch.full((resamples,), float(k), dtype=torch.float64), generator=generator)
        for k in (n - kept + 1, kept)
    )
    rank = (n * below / (below + above)).long().clamp(max=n - 1)
    thresholds = inside.sort().values.cpu()[rank]
    accepted = 1 - torch.searchsorted(outside.sort().values.cpu(), thresholds).double() / m
    variance = accepted.var() + (accepted * (1 - accepted)).mean() / m
    return max(math.sqrt(float(variance)), fraction_std_err(float(accepted.mean()), m))


def kid_std_err(real: Tensor, fake: Tensor, groups: int = 10) -> float:
    """Standard error of the KID between features (N, D) and (M, D) that comes from the number of samples ``fake``.

    A jackknife that leaves out one of ``groups`` groups of samples at a time. Of more than 4000 samples it takes every
    second, third, ..., and scales the error to their number.
    """
    scale = math.sqrt(len(fake[:: _stride(fake)]) / len(fake))
    real, fake = real[:: _stride(real)].double(), fake[:: _stride(fake)].double()
    within, between = ((fake @ other.T / real.shape[1] + 1) ** 3 for other in (fake, real))
    within.fill_diagonal_(0)
    group = torch.arange(len(fake)) % groups
    left_out = []
    for k in range(groups):
        rows = group != k
        n = int(rows.sum())
        left_out.append(within[rows][:, rows].sum() / (n * (n - 1)) - 2 * between[rows].mean())
    return scale * math.sqrt((groups - 1) * float(torch.stack(left_out).var(correction=0)))


def _stride(rows: Tensor) -> int:
    return -(-len(rows) // 4000)


def fid_std_err(real: Tensor, fake: Tensor, groups: int = 10) -> float:
    """Standard error of the FID between features (N, D) and (M, D) that comes from the number of samples ``fake``.

    A jackknife that leaves out one of ``groups`` groups of samples at a time.
    """
    real, fake = real.double(), fake.double()
    values, vectors = torch.linalg.eigh(real.T.cov())
    values = values.clamp(min=0)
    root = vectors * values.sqrt() @ vectors.T
    group = torch.arange(len(fake)) % groups
    left_out = [_fid(real.mean(0), root, fake[group != k]) for k in range(groups)]
    return math.sqrt((groups - 1) * float(torch.stack(left_out).var(correction=0)))


def _fid(mean: Tensor, root: Tensor, fake: Tensor) -> Tensor:
    """FID from the mean (D,) and the root of the covariance (D, D) of the reference."""
    centered = (fake - fake.mean(0)) / math.sqrt(len(fake) - 1)
    overlap = torch.linalg.svdvals(root @ centered.T).sum()  # trace of the root of the product of covariances
    return (mean - fake.mean(0)).square().sum() + root.square().sum() + centered.square().sum() - 2 * overlap


def _fraction_above(scores: Tensor, others: Tensor) -> Tensor:
    """The fraction of ``others`` above each of ``scores``; ties count half."""
    ordered = others.sort().values.contiguous()
    below = torch.searchsorted(ordered, scores.contiguous(), right=False)
    up_to = torch.searchsorted(ordered, scores.contiguous(), right=True)
    return 1 - (below + up_to).double() / (2 * len(ordered))
