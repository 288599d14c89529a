"""Mass in a shell that no chain visited, and none where there is no such shell.

Mutants killed: the volume of the scaled copies left out, copies among the chains that count, unweighted chains.
"""

import math

import pytest
import torch
from torch import Tensor

from ebm_lightning.partition.diagnostics.scaled_copies import missed_shells
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Box, Euclidean

D, N = 60, 1000
EQUAL = torch.zeros(N, dtype=torch.float64)


def two_shells(x: Tensor, std: float, share: float) -> Tensor:
    """Energy of a standard normal density with a part of weight ``share`` and that standard deviation."""
    squared = x.double().square().sum(1)
    inner = math.log1p(-share) - squared / 2
    return -torch.logaddexp(inner, math.log(share) - squared / (2 * std**2) - D * math.log(std))


@pytest.mark.parametrize(("std", "share"), [(2.0, 0.2), (0.5, 0.3), (2.5, 0.5)])
def test_a_shell_that_no_chain_visited_is_found(std, share, seed):
    x = torch.randn(N, D, generator=make_generator(seed, "x"))
    why, evaluations = missed_shells(lambda x: two_shells(x, std, share), Euclidean((D,)), x, EQUAL)
    assert evaluations < 15_000
    found = float(why.split("at least ")[1].split(" nats")[0])
    assert 0.2 < found / -math.log1p(-share) < 1.1  # rounded


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_shells_that_chains_visited_are_not(std, seed):
    rng = make_generator(seed, "x")
    x = torch.randn(N, D, generator=rng) * torch.where(torch.rand(N, 1, generator=rng) < 0.2, std, 1.0)
    assert not missed_shells(lambda x: two_shells(x, std, 0.2), Euclidean((D,)), x, EQUAL)[0]


@pytest.mark.parametrize("dimensions", [1, 2, 10, 300])
def test_a_normal_density_has_one_shell(dimensions, seed):
    scale = torch.logspace(-2, 2, dimensions)
    x = 3 + scale * torch.randn(N, dimensions, generator=make_generator(seed, "x"))
    energy = lambda x: 0.5 * ((x - 3) / scale).square().sum(1)  # noqa: E731
    assert not missed_shells(energy, Euclidean((dimensions,)), x, EQUAL)[0]


def test_weights_count(seed):
    """Chains of a wider density, with the weights that make them draws of the model."""
    x = 1.05 * torch.randn(N, D, generator=make_generator(seed, "x"))
    log_w = (0.5 / 1.05**2 - 0.5) * x.double().square().sum(1)
    why = missed_shells(lambda x: two_shells(x, 2.0, 0.5), Euclidean((D,)), x, log_w)[0]
    found = float(why.split("at least ")[1].split(" nats")[0])
    assert 0.2 < found / math.log(2) < 1.1


def test_a_box_is_left_to_other_checks():
    assert missed_shells(lambda x: x.sum(1), Box(-1, 1, (2,)), torch.zeros(9, 2), torch.zeros(9)) == ("", 0)
