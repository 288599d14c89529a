"""Estimates on several ranks equal those of one process, bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ebm_lightning import ClassificationRBM, LogZ, ais
from ebm_lightning.energies import JointEnergy
from ebm_lightning.networks import MLP
from ebm_lightning.partition import classification_rbm_ais, rbm_ais
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Box, Gaussian


class FakeRanks:
    """One of several ranks in one process. What the other ranks contribute to ``all_gather`` is passed in.

    Arguments:
        rank: Of this process.
        others: Islands of the ranks that have run, by rank. They are recorded here.
        world_size: Number of ranks.
    """

    def __init__(self, rank: int, others: dict[int, Any], world_size: int) -> None:
        self.rank, self.others, self.world_size = rank, others, world_size

    def broadcast(self, value: Any) -> Any:
        return value

    def all_gather(self, value: Any) -> list[Any]:
        self.others[self.rank] = value
        if len(self.others) < self.world_size:
            raise Incomplete
        return [self.others[rank] for rank in range(self.world_size)]


class Incomplete(Exception):
    """The other ranks have not run yet."""


def on_ranks(estimate: Callable[[Any], LogZ], world_size: int) -> LogZ:
    """The estimate of rank 0, after all other ranks have run their islands."""
    islands: dict[int, Any] = {}
    for rank in range(world_size - 1, 0, -1):
        with pytest.raises(Incomplete):
            estimate(FakeRanks(rank, islands, world_size))
    return estimate(FakeRanks(0, islands, world_size))


def box_estimate(seed: int) -> Callable[[Any], LogZ]:
    energy = JointEnergy(MLP(2, 3, (16, 16)), Box(-2, 2, (2,)))
    return lambda ranks: ais(
        energy, energy.support, temperatures=15, num_chains=137, chunk_size=12, seed=seed, ranks=ranks
    )


def gaussian_estimate(seed: int) -> Callable[[Any], LogZ]:
    energy = JointEnergy(MLP(2, 3, (16, 16)), Gaussian(0.0, 1.0, (2,)))
    arguments = {"temperatures": 15, "num_chains": 40, "resample": False}
    return lambda ranks: ais(energy, energy.support, **arguments, generator=make_generator(seed), ranks=ranks)


def trained_rbm() -> ClassificationRBM:
    module = ClassificationRBM(12, 8, 4)
    module.rbm.observe((torch.rand(100, 12) < 0.4).float(), torch.randint(4, (100,)))
    return module


def binary_estimate(seed: int) -> Callable[[Any], LogZ]:
    module = trained_rbm()
    return lambda ranks: ais(module.energy, module.support, temperatures=15, num_chains=43, seed=seed, ranks=ranks)


def classification_rbm_estimate(seed: int) -> Callable[[Any], LogZ]:
    module = trained_rbm()
    return lambda ranks: classification_rbm_ais(
        module.energy, temperatures=15, num_chains=43, generator=make_generator(seed), ranks=ranks
    )


def rbm_estimate(seed: int) -> Callable[[Any], LogZ]:
    w, b, c = torch.randn(6, 4), torch.randn(6), torch.randn(4)
    return lambda ranks: rbm_ais(
        w, b, c, data_mean=None, temperatures=15, num_chains=43, generator=make_generator(seed), ranks=ranks
    )


@pytest.mark.parametrize("world_size", [2, 3, 16])
@pytest.mark.parametrize(
    "make", [box_estimate, gaussian_estimate, binary_estimate, classification_rbm_estimate, rbm_estimate]
)
def test_ranks_give_the_estimate_of_one_process(make, world_size, seed):
    """16 ranks are more than there are islands. Kills: a stream seeded by rank, islands in another order or twice."""
    estimate = make(seed)
    one, many = estimate(None), on_ranks(estimate, world_size)
    for name, value in vars(one).items():
        other = getattr(many, name)
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(other, value, rtol=0, atol=0, equal_nan=True)
        else:
            assert value == other, name


def test_each_island_runs_on_one_rank(seed):
    islands: dict[int, Any] = {}
    estimate = box_estimate(seed)
    for rank in (1, 0):
        try:
            estimate(FakeRanks(rank, islands, 2))
        except Incomplete:
            continue
    assert sorted(islands[0]) == list(range(0, 12, 2))
    assert sorted(islands[1]) == list(range(1, 12, 2))


def test_progress_counts_the_islands_of_this_rank(seed):
    ticks: list[int] = []

    def progress(loop):
        for tick in loop:
            ticks.append(tick)
            yield tick

    energy = JointEnergy(MLP(2, 3, (8,)), Box(-2, 2, (2,)))
    with pytest.raises(Incomplete):
        ais(energy, energy.support, temperatures=7, num_chains=50, progress=progress, ranks=FakeRanks(2, {}, 4))
    pilot = len(ticks) - 2 * 7
    assert ticks == [*range(pilot), *range(2 * 7)]


def test_all_ranks_follow_the_path_of_rank_0(seed):
    class Root(FakeRanks):
        def broadcast(self, value):
            sent.append(value)
            return value

    class Follower(FakeRanks):
        def broadcast(self, value):
            return sent[0]

    sent: list[Any] = []
    energy, islands = JointEnergy(MLP(2, 3, (16, 16)), Box(-2, 2, (2,))), {}
    root = ais(energy, energy.support, temperatures=9, num_chains=40, seed=seed, ranks=Root(0, {}, 1))
    follower = Follower(0, islands, 1)
    other = ais(energy, energy.support, temperatures=9, num_chains=40, seed=seed + 1, ranks=follower)
    assert torch.equal(root.betas, other.betas)
    assert not torch.equal(root.log_weights, other.log_weights)
