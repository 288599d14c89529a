"""Small systems of statistical physics, by hand and against the RBM of the Ising model's checkerboard."""

import math

import pytest
import torch

from ebm_lightning import BlockGibbs, exact_log_z
from ebm_lightning.rbm import bernoulli
from ebm_lightning.rng import make_generator
from tests.conftest import z_score
from tests.helpers import recipe

physics = recipe("statistical_physics.py")
Ising, boltzmann, probability_up = physics.Ising, physics.boltzmann, physics.probability_up
arrangements, line_energy = physics.arrangements, physics.line_energy


def test_three_sites_by_hand():
    orders = arrangements("AAB")
    assert orders == ["AAB", "ABA", "BAA"]
    energies = torch.tensor([line_energy(order, {"AA": 0.5, "AB": -1.0}) for order in orders])
    assert energies.tolist() == [-0.5, -2.0, -0.5]
    p, log_z = boltzmann(energies, 2.0)
    z = 2 * math.exp(0.25) + math.exp(1.0)
    assert p.tolist() == pytest.approx([math.exp(0.25) / z, math.exp(1.0) / z, math.exp(0.25) / z])
    assert log_z == pytest.approx(math.log(z))


def test_limits_of_temperature():
    energies = torch.tensor([1.0, -2.0, -2.0, 0.0])
    assert boltzmann(energies, 0)[0].tolist() == [0, 0.5, 0.5, 0]
    assert boltzmann(energies, 1e-3)[0].tolist() == pytest.approx([0, 0.5, 0.5, 0])
    p, log_z = boltzmann(energies, math.inf)
    assert p.tolist() == [0.25] * 4
    assert log_z == pytest.approx(math.log(4))
    with pytest.raises(ValueError, match="'temperature' should be 0 or positive, got -1"):
        boltzmann(energies, -1)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
def test_the_three_formulas_of_a_single_unit(temperature):
    a = 0.7
    ratio = torch.tensor(a / temperature, dtype=torch.float64)
    spin, bit = (float(probability_up(low, a, temperature)) for low in (-1, 0))
    assert spin - (1 - spin) == pytest.approx(float(ratio.tanh()))
    assert spin == pytest.approx(float((2 * ratio).sigmoid()))
    assert bit == pytest.approx(float(ratio.sigmoid()))
    for low in (-1, 0):
        assert probability_up(low, a, 0) == 1
        assert probability_up(low, a, math.inf) == 0.5


def test_ising_energies_by_hand():
    model, up = Ising(4, 1.5, 0.25), torch.ones(1, 4, 4)
    assert float(model.energy(up)) == pytest.approx(-1.5 * 32 - 0.25 * 16)
    flipped = up.clone()
    flipped[0, 1, 2] = -1
    assert float(model.energy(flipped) - model.energy(up)) == pytest.approx(1.5 * 8 + 0.25 * 2)
    assert len(model.states()) == 65_536
    with pytest.raises(ValueError, match="'side' should be at least 4, got 3"):
        Ising(3)
    with pytest.raises(ValueError, match="'side' should be even, got 5"):
        Ising(5)


def test_the_checkerboard_is_an_rbm(seed):
    """Kills: a missing or doubled bond, a bias for the wrong number of neighbors, the constant, swapped colors."""
    model = Ising(4, 1.0, 0.3)
    energy, constant = model.rbm(2.5)
    p, log_z = boltzmann(model.energy(model.states()), 2.5)
    assert exact_log_z(energy, energy.support).log_z + constant == pytest.approx(log_z, abs=1e-4)
    generator, n = make_generator(seed, "ising"), 20_000
    white = BlockGibbs(60)(energy, energy.support.sample(n, generator=generator), generator=generator)
    with torch.no_grad():
        black = bernoulli(energy.classifier.hidden_logits(white, torch.zeros(n).long()), generator)
    spins = model.spins(white, black)
    for found, of_states in (
        (model.energy(spins), model.energy(model.states())),
        (spins.flatten(1).mean(1), model.states().flatten(1).mean(1)),
        (spins[:, 0, 0] * spins[:, 0, 1], model.states()[:, 0, 0] * model.states()[:, 0, 1]),
        (spins[:, 1, 0] * spins[:, 1, 2], model.states()[:, 1, 0] * model.states()[:, 1, 2]),
    ):
        assert z_score(found, float(p @ of_states.double())) < 5
