"""Exact log Z: closed forms, quadrature, enumeration, and annealing of plain RBMs against them."""

import math

import pytest
import torch
from torch import nn

from ebm_lightning.energies import GaussianEnergy, JointEnergy, MixtureLogits
from ebm_lightning.networks import MLP
from ebm_lightning.partition import enumerate_log_z, exact_log_z, quadrature, rbm_ais, rbm_log_z
from ebm_lightning.partition.exact import grid, linear_log_z
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Binary, Box, Euclidean
from tests.conftest import z_score


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("box", [Box(-1, 1, (2,)), Box(-0.5, 2, (2,))])
def test_linear_logits_against_quadrature(box, temperature, seed):
    energy = JointEnergy(nn.Linear(2, 3), box, temperature)
    with torch.no_grad():
        energy.classifier.weight.mul_(5)
        energy.classifier.weight[0, 0] = 0
    exact = exact_log_z(energy, box)
    assert exact.log_z == pytest.approx(quadrature(energy, box), abs=1e-4)
    for y in range(3):
        by_class = quadrature(lambda x, y=y: energy(x, torch.full((len(x),), y)), box)
        assert float(exact.per_class[y]) == pytest.approx(by_class, abs=1e-4)


def test_log_probabilities_are_normalized():
    """Kills: log Z in place of log Z_y, a joint energy in place of the marginal one, a wrong sign of either."""
    energy = JointEnergy(MLP(2, 3, (8,)), Box(-1, 1, (2,)))
    exact, x = exact_log_z(energy, energy.support), grid(energy.support, 300)
    cell = 2 * math.log(2 / 300)
    assert float(exact.log_prob(energy, x).logsumexp(0)) + cell == pytest.approx(0, abs=1e-4)
    joint = torch.stack([exact.log_prob(energy, x, torch.full((len(x),), y)) for y in range(3)])
    assert torch.allclose(joint.logsumexp(0), exact.log_prob(energy, x), atol=1e-5)
    for y in range(3):
        given = exact.log_prob(energy, x, torch.full((len(x),), y), given_label=True)
        assert float(given.logsumexp(0)) + cell == pytest.approx(0, abs=1e-4)
        assert torch.allclose(given + exact.prior[y].log(), joint[y], atol=1e-5)
    with pytest.raises(ValueError, match="'y' should be labels"):
        exact.log_prob(energy, x, given_label=True)


def test_linear_logits_in_many_dimensions_do_not_overflow():
    layer = nn.Linear(3072, 2)
    nn.init.constant_(layer.weight, 800.0)
    nn.init.zeros_(layer.bias)
    expected = 3072 * (800 - math.log(800))
    assert float(linear_log_z(layer, Box(-1, 1, (3072,)))[0]) == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_mixtures_against_quadrature(temperature):
    logits = MixtureLogits(torch.tensor([[-1.0, 0.5], [1.5, -1.0]]), 0.6, torch.tensor([0.3, 0.7]))
    plane, box = Euclidean((2,)), Box(-10, 10, (2,))
    exact = exact_log_z(JointEnergy(logits, plane, temperature), plane)
    assert exact.log_z == pytest.approx(quadrature(JointEnergy(logits, box, temperature), box), abs=1e-4)
    assert float(exact.per_class.logsumexp(0)) == pytest.approx(exact.log_z)
    assert exact.interval() == (exact.log_z, exact.log_z)


def test_networks_on_small_boxes_and_gaussians(seed):
    box = Box(-1, 1, (2,))
    energy = JointEnergy(MLP(2, 3), box)
    exact = exact_log_z(energy, box)
    assert exact.log_z == pytest.approx(quadrature(energy, box), abs=1e-6)
    assert exact_log_z(lambda x: x[:, 0], Box(-1, 1, (1,))).per_class is None
    gaussian = GaussianEnergy(torch.zeros(3), torch.ones(3))
    assert exact_log_z(gaussian, Euclidean((3,))).log_z == pytest.approx(1.5 * math.log(2 * math.pi))


def test_enumeration_of_independent_units():
    field = torch.tensor([0.5, -1.0, 2.0])
    exact = sum(math.log1p(math.exp(f)) for f in field.tolist())
    assert enumerate_log_z(lambda s: -(s @ field), 3, chunk_size=3) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
def test_rbm_against_the_sum_over_both_layers(shape, seed):
    w, b, c = torch.randn(shape), torch.randn(shape[0]), torch.randn(shape[1])

    def joint(state):
        v, h = state.double().split(shape, 1)
        return -((v @ w.double()) * h).sum(1) - v @ b.double() - h @ c.double()

    assert rbm_log_z(w, b, c) == pytest.approx(enumerate_log_z(joint, 11), abs=1e-9)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (
            lambda: exact_log_z(lambda x: x.sum(1), Box(-1, 1, (9,))),
            "'energy' should be one whose log Z is known on Box",
        ),
        (
            lambda: enumerate_log_z(lambda s: s.sum(1), 21),
            r"'units' should be at most 20, got 21. Summing 2\^21 states",
        ),
        (lambda: rbm_log_z(torch.zeros(30, 25), torch.zeros(30), torch.zeros(25)), "'units' should be at most 20"),
        (lambda: exact_log_z(lambda x: x.sum(1), Binary((3072,))), r"2\^3072 states are too many to sum"),
    ],
)
def test_intractable_energies_are_refused(action, message):
    with pytest.raises(ValueError, match=message):
        action()


@pytest.mark.parametrize("with_data", [True, False])
def test_block_gibbs_annealing_of_an_rbm(with_data, seed):
    w, b, c = 0.7 * torch.randn(12, 8), torch.randn(12), torch.randn(8)
    mean = torch.rand(12) if with_data else None
    result = rbm_ais(w, b, c, data_mean=mean, temperatures=300, num_chains=200, generator=make_generator(seed, "rbm"))
    assert abs(result.log_z - rbm_log_z(w, b, c)) < 5 * result.std_err + 1e-3
    assert result.std_err < 0.1


def test_rbm_weights_are_unbiased_with_one_temperature(seed):
    w, b, c = 0.5 * torch.randn(6, 4), torch.randn(6), torch.randn(4)
    truth = rbm_log_z(w, b, c)
    result = rbm_ais(w, b, c, data_mean=None, temperatures=2, num_chains=20_000, generator=make_generator(seed, "rbm"))
    assert z_score((result.log_weights - truth).exp(), 1.0) < 5
    with pytest.raises(ValueError, match=r"'data_mean' should be in \[0, 1\], got 2"):
        rbm_ais(w, b, c, data_mean=torch.full((6,), 2.0))


def test_quadrature_of_a_constant_and_of_a_gaussian():
    assert quadrature(lambda x: torch.full((len(x),), -3.0), Box(-2, 2, (2,))) == pytest.approx(3 + math.log(16))
    assert quadrature(lambda x: x[:, 0].square() / 2, Box(-9, 9, (1,))) == pytest.approx(math.log(2 * math.pi) / 2)
    with pytest.raises(ValueError, match=r"'support' should be a Box of shape \(1,\) or \(2,\)"):
        quadrature(lambda x: x.sum(1), Box(-1, 1, (3,)))
