"""Reweighted chains: their weights estimate log Z, and masses are right where chains cannot cross between modes."""

import functools
import math

import pytest
import torch

from ebm_lightning import Box, ReweightedBuffer
from ebm_lightning.rng import make_generator

BOX = Box(-1, 1, (1,))


def moved(chains: ReweightedBuffer, level: float, steps: int, generator: torch.Generator, n: int = 100) -> None:
    """Change the model from uniform to one with log density ``level`` higher where x > 0, while no chain moves.

    It stays as it is in the last half of the steps, so that all chains see it.
    """

    def log_tilt(x: torch.Tensor, t: float) -> torch.Tensor:
        return torch.where(x[:, 0] > 0, t * level, 0.0)

    for step in range(1, steps + 1):
        t = min(1.0, 2 * step / steps)
        x, index = chains.draw(n, generator=generator)
        x = chains.reweight(index, x, functools.partial(log_tilt, t=t), generator)
        chains.store(index, x)
        chains.remember(index, log_tilt(x, t))


@pytest.mark.parametrize("reinit_prob", [0.0, 0.1])
def test_masses_and_log_z_follow_the_model_though_no_chain_crosses(reinit_prob, seed):
    """Mutants: a weight upside down; new chains with the weight of old ones; no reweighting."""
    shares, estimates = [], []
    for run in range(60):
        generator = make_generator(seed, "run", run)
        chains = ReweightedBuffer(400, reinit_prob)
        chains.setup(BOX, None, generator)
        moved(chains, 2.0, 80, generator)
        shares.append(float((chains.x[:, 0] > 0).double().mean()))
        estimates.append(math.exp(chains.log_z))
    exact = (1 + math.exp(2.0)) / 2
    share = math.exp(2.0) / (1 + math.exp(2.0))
    shares, estimates = torch.tensor(shares), torch.tensor(estimates)
    assert abs(shares.mean() - share) < 0.02
    assert abs(estimates.mean() / exact - 1) < 0.05
    assert shares.std() < 0.05


def test_chains_that_the_model_does_not_change_are_kept(seed):
    generator = make_generator(seed, "kept")
    chains = ReweightedBuffer(50)
    chains.setup(BOX, None, generator)
    x, index = chains.draw(20, generator=generator)
    assert torch.equal(chains.reweight(index, x, lambda x: torch.full((len(x),), 3.0), generator), x)
    assert chains.log_weight[index].tolist() == pytest.approx([3.0] * 20)


def test_weights_are_part_of_the_state(seed):
    generator = make_generator(seed, "state")
    chains, restored = ReweightedBuffer(50), ReweightedBuffer(50)
    chains.setup(BOX, None, generator)
    moved(chains, 1.0, 5, generator, n=20)
    restored.setup(BOX, None, generator)
    restored.load_state_dict(chains.state_dict())
    assert all(torch.equal(a, restored.state_dict()[name]) for name, a in chains.state_dict().items())
    halves = [ReweightedBuffer(25) for _ in range(2)]
    for rank, half in enumerate(halves):
        half.setup(BOX, None, generator)
        half.load_sharded([chains.state_dict()], rank, 2)
    both = torch.cat([half.log_weight for half in halves])
    assert torch.equal(both.sort().values, chains.log_weight.sort().values)


def test_chains_of_classes_are_refused():
    with pytest.raises(ValueError, match="ReplayBuffer"):
        ReweightedBuffer(30).setup(BOX, 3)


def test_chains_of_another_kind_are_refused(seed):
    generator = make_generator(seed, "kind")
    chains = ReweightedBuffer(50)
    chains.setup(BOX, None, generator)
    state = {name: chains.state_dict()[name] for name in ("x", "age")}
    with pytest.raises(ValueError, match="log_weight"):
        chains.load_state_dict(state)
