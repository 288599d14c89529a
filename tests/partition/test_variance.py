"""The error of resampled chains: from the spread of islands and from chains of one origin, the larger of both.

Mutants killed: only the islands, only the origins, origins that are not passed through resampling, the correction for
the number of resamplings, and one origin for chains of different islands.
"""

import dataclasses

import pytest
import torch

from ebm_lightning.energies import GaussianEnergy
from ebm_lightning.partition import Normal
from ebm_lightning.partition.ais import anneal
from ebm_lightning.partition.annealing_path import Annealing
from ebm_lightning.partition.islands import Island, relative_variance, two_variances, typical_ess
from ebm_lightning.partition.log_z import relative_ess
from ebm_lightning.partition.pilot import tune_path
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import GHMC
from ebm_lightning.supports import Euclidean


def island(n: int, origin: torch.Tensor | None = None, resamplings: int = 0) -> Island:
    log_w, one = torch.zeros(n, dtype=torch.float64), torch.ones(1)
    return Island(log_w, None, one, one, torch.zeros(n, 1), 0.0, origin, resamplings)


def weights(seed: int, islands: int = 10, n: int = 50) -> list[torch.Tensor]:
    w = torch.randn(islands, n, 1, generator=make_generator(seed, "w"), dtype=torch.float64).exp()
    return list(w / w.sum())


def test_without_resampling_it_is_the_variance_of_a_mean(seed):
    """sum (w - mean)^2 n / (n - 1) of each island, where islands of equal means have no spread."""
    parts = [part / part.sum() / 10 for part in weights(seed)]
    expected = sum(part.var() * len(part) for part in parts)
    assert torch.allclose(relative_variance(parts, [island(50)] * 10), expected)


def test_islands_of_equal_chains_show_their_spread(seed):
    totals = torch.rand(10, generator=make_generator(seed, "t"), dtype=torch.float64) + 0.5
    totals /= totals.sum()
    parts = [(t / 50).expand(50, 1) for t in totals]
    assert torch.allclose(relative_variance(parts, [island(50)] * 10), (totals - 0.1).square().sum() * 10 / 9)


def test_chains_of_one_origin_count_as_one(seed):
    """Two origins of half an island each vary as two chains do, and one origin says nothing less than everything."""
    equal = [torch.full((50, 1), 1 / 500, dtype=torch.float64)] * 10
    halves = [island(50, torch.arange(50) // 25 * 7, 1)] * 10
    merged = [island(50, torch.zeros(50, dtype=torch.long), 3)] * 10
    assert relative_variance(equal, [island(50)] * 10) < 1e-12
    assert torch.allclose(relative_variance(equal, merged), torch.tensor([0.1], dtype=torch.float64))
    different = 10 * 2 * (0.05) ** 2
    assert torch.allclose(
        relative_variance(equal, halves), torch.tensor([0.1 - (50 / 49) ** 2 * different], dtype=torch.float64)
    )


def test_the_typical_effective_sample_size_is_between_both(seed):
    """Islands of different totals, in each of which 25 chains of one origin have the same weight."""
    log_w = torch.randn(10, generator=make_generator(seed, "w"), dtype=torch.float64) / 10
    origin = torch.arange(50) // 25
    islands = [dataclasses.replace(island(50, origin, 1), log_weights=w.expand(50)) for w in log_w]
    parts = [(w - log_w.logsumexp(0)).exp().expand(50, 1) / 50 for w in log_w]
    spread, by_origin = (float(v) for v in two_variances(parts, islands))
    assert 1 / typical_ess(islands) == pytest.approx(1 + 500 * (spread + max(by_origin, 0)) / 2)
    alone = [dataclasses.replace(i, origin=None, resamplings=0) for i in islands]
    assert typical_ess(alone) == pytest.approx(relative_ess(log_w.repeat_interleave(50)))


def test_annealing_keeps_track_of_origins(seed):
    """Chains with one origin were resampled from it. Without resampling each has its own."""
    annealing = Annealing(
        GaussianEnergy(torch.zeros(8), torch.full((8,), 0.1)),
        Euclidean((8,)),
        Normal(torch.zeros(8), torch.ones(8)),
        GHMC(),
    )
    path = tune_path(annealing, 30, "adaptive", seed, torch.device("cpu"))
    done = anneal(annealing, path, 60, make_generator(seed), True, iter(range(30)))
    plain = anneal(annealing, path, 60, make_generator(seed), False, iter(range(30)))
    assert done.origin is not None
    assert done.resamplings > 0
    assert 1 <= len(done.origin.unique()) < 60
    assert plain.resamplings == 0
    assert plain.origin is not None
    assert len(plain.origin.unique()) == 60
