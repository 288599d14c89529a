"""The error of resampled chains: from the spread of islands, from chains of one origin, and of log-normal weights.

Mutants killed: only the islands, only the origins, origins that are not passed through resampling, the correction for
the number of resamplings, and one origin for chains of different islands. Of log-normal weights: one part or all points
in place of one per resampling, parts whose covariance is left out, the weights themselves or none in place of
their square root, sums that are not passed through resampling, and log weights in place of their sums.
"""

import dataclasses
import math

import pytest
import torch

from ebm_lightning.energies import GaussianEnergy
from ebm_lightning.partition import Normal
from ebm_lightning.partition.ais import anneal
from ebm_lightning.partition.annealing_path import Annealing
from ebm_lightning.partition.islands import Island, log_normal_variance, relative_variance, two_variances, typical_ess
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
    assert plain.lineages is not None
    assert torch.allclose(plain.lineages[-1], plain.log_weights)
    assert done.lineages is not None
    assert plain.lineages.shape == done.lineages.shape == (20, 60)
    of_origin = torch.stack([done.origin, *done.lineages[:2]], 1).unique(dim=0)
    assert len(of_origin) == len(done.origin.unique())  # chains of one origin have the same past


def with_lineages(log_weights: torch.Tensor, sums: torch.Tensor, resamplings: int) -> Island:
    return dataclasses.replace(island(len(log_weights), None, resamplings), log_weights=log_weights, lineages=sums)


def test_independent_parts_of_log_normal_weights_count_separately_and_equal_ones_together():
    signs = torch.tensor([[1, 1, -1, -1], [1, -1, 1, -1]], dtype=torch.float64)
    equal = torch.zeros(4, dtype=torch.float64)
    for first, second, changes in (
        (0.8**2, 0.5**2, torch.tensor([[0.8], [0.5]]) * signs),
        (1.3**2, 0.0, torch.tensor([[0.8], [0.5]]) * signs[:1]),
        ((0.8 + 0.3) ** 2, 0.5**2, torch.tensor([[0.8, 0.0], [0.3, 0.5]], dtype=torch.float64) @ signs),
    ):
        sums = changes.double().cumsum(0)
        expected = (math.expm1(first) + math.expm1(second)) / 4
        assert log_normal_variance([with_lineages(equal, sums, 1)]) == pytest.approx(expected, abs=1e-7)
        in_one_part = math.expm1(float(sums[1].square().mean())) / 4
        assert log_normal_variance([with_lineages(equal, sums, 0)]) == pytest.approx(in_one_part, abs=1e-7)


def test_chains_of_weight_zero_and_constant_weights_have_no_log_normal_variance():
    log_w = torch.tensor([0.0, 0.0, -math.inf], dtype=torch.float64)
    assert log_normal_variance([with_lineages(log_w, log_w.expand(4, 3), 2)]) < 1e-9


def test_an_estimate_that_lacks_the_largest_weights_does_not_state_a_small_error(seed):
    """Log weights of variance 4, in 3000 estimates."""
    log_w = 2 * torch.randn(3000, 1000, generator=make_generator(seed, "w"), dtype=torch.float64)
    error = log_w.logsumexp(1) - math.log(1000) - 2
    by_weights = torch.tensor([math.sqrt((1 / relative_ess(w) - 1) / 1000) for w in log_w], dtype=torch.float64)
    log_normal = torch.tensor([log_normal_variance([with_lineages(w, w[None], 0)]) for w in log_w], dtype=torch.float64)
    far = (error < -3 * by_weights).sum()
    assert far > 40
    assert (error < -3 * torch.maximum(by_weights, log_normal.sqrt())).sum() < far / 3
    true = math.sqrt(math.expm1(4.0) / 1000)
    assert log_normal.sqrt().median() == pytest.approx(true, rel=0.15)


def test_chains_of_negligible_weight_do_not_count_in_log_normal_weights(seed):
    """As where half of the chains start far from the model, so that log weights have two modes. Kills: no weights."""
    normals = torch.randn(2, 500, generator=make_generator(seed, "w"), dtype=torch.float64)
    log_w = torch.cat([0.3 * normals[0], normals[1] - 16])
    by_weights = (1 / relative_ess(log_w) - 1) / 1000
    assert 0 < log_normal_variance([with_lineages(log_w, log_w[None], 0)]) < by_weights
