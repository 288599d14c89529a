"""Intervals of AUROC, AUPR and FPR95, by resampling the scores of both sets."""

import torch
from torch import Tensor

from ebm_lightning.rng import make_generator

Interval = tuple[float, float]


def bootstrap_intervals(
    inside: Tensor, outside: Tensor, resamples: int = 200, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Percentile intervals of ``auroc``, ``fpr95``, ``aupr_in`` and ``aupr_out``, defined as in :class:`OODScores`.

    Arguments:
        inside: In-distribution scores, shape (N,), larger for in-distribution data.
        outside: Out-of-distribution scores, shape (M,).
        resamples: Number of resamples.
        level: Probability of the intervals.
        seed: Seed of the resamples. Detectors with the same seed and sets get the same resamples.

    References:
        Efron & Tibshirani, An introduction to the bootstrap, 1993, sec. 13.3.
    """
    values, rank = torch.cat([inside, outside]).unique(return_inverse=True)
    generator = make_generator(seed, "bootstrap")
    parts = [_counts(r.cpu(), len(values), resamples, generator) for r in rank.split([len(inside), len(outside)])]
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    bounds = {name: values.quantile(tails).tolist() for name, values in _metrics(*parts).items()}
    return {name: (low, high) for name, (low, high) in bounds.items()}


def _counts(rank: Tensor, levels: int, resamples: int, generator: torch.Generator) -> Tensor:
    """How often each of the distinct scores occurs in each resample, shape (resamples, levels)."""
    n = len(rank)
    draws = [rank[torch.randint(n, (n,), generator=generator)] for _ in range(resamples)]
    return torch.stack([draw.bincount(minlength=levels) for draw in draws]).double()


def _metrics(inside: Tensor, outside: Tensor) -> dict[str, Tensor]:
    """The metrics of each resample, shape (resamples,), from counts in the order of rising scores."""
    n, m = inside.sum(1), outside.sum(1)
    in_above, out_above = (part.flip(1).cumsum(1).flip(1) for part in (inside, outside))  # at this score or higher
    below = m[:, None] - out_above + outside / 2
    kept = in_above >= (95 * n[:, None] / 100 - 1e-9)
    last = kept.long().cumsum(1).argmax(1, keepdim=True)  # the highest score that keeps 95 %
    in_below, out_below = inside.cumsum(1), outside.cumsum(1)
    return {
        "auroc": (inside * below).sum(1) / (n * m),
        "fpr95": out_above.gather(1, last)[:, 0] / m,
        "aupr_in": (inside * in_above / (in_above + out_above).clamp(min=1)).sum(1) / n,
        "aupr_out": (outside * out_below / (in_below + out_below).clamp(min=1)).sum(1) / m,
    }
