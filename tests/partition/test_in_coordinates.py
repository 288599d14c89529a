"""Estimates of log Z of a model with coordinates, given its energy of x, as people pass it.

Mutants that these tests kill: an estimate in x, which does not fit the support of u; a partial that loses its label; an
energy that is copied where there are no coordinates.
"""

import functools
import math

import pytest
import torch

from ebm_lightning import JointEnergy, ais
from ebm_lightning.coordinates import Compose, NormalScores, Quantiles
from ebm_lightning.energies import Energy, MixtureLogits, in_coordinates
from ebm_lightning.partition import exact_log_z, laplace_log_z, quadrature, reverse_ais
from ebm_lightning.supports import Euclidean
from tests.coordinates.kinds import BOX, LEVELS, box_data, midpoints
from tests.modules.coordinates_models import LINE, Exact, line_model, net, seeded


@torch.no_grad()
def log_z_in_x(energy: Energy) -> float:
    grid, width = midpoints(-2, 2, 8000, 1)
    return float((-energy(grid.float()).double()).logsumexp(0)) + math.log(width)


def test_estimates_of_a_model_run_in_its_coordinates(seed):
    """Of ``model.energy`` as people pass it, of a label, and of a given label, against quadrature in x."""
    module = line_model().eval()
    y = torch.tensor([1])
    of_class = functools.partial(module.energy, y=y)
    exact = log_z_in_x(module.energy)
    exact_of_class = log_z_in_x(of_class)
    assert exact_log_z(module.energy, module.support).log_z == pytest.approx(exact, abs=1e-4)
    assert quadrature(module.energy, module.support) == pytest.approx(exact, abs=1e-4)
    assert quadrature(of_class, module.support) == pytest.approx(exact_of_class, abs=1e-4)
    found = ais(of_class, module.support, temperatures=30, num_chains=400, seed=seed)
    assert abs(found.log_z - exact_of_class) < 5 * found.std_err
    module.double()
    u = next(Exact().transitions(module.chain_energy, torch.zeros(400, 1), module.support, None)).x[::10].float()
    module.float()
    found = reverse_ais(module.energy, module.support, u, exact=True, temperatures=60, generator=seeded())
    assert abs(found.log_z - exact) < 5 * found.std_err


def test_the_laplace_approximation_is_of_u(seed):
    """A Gaussian in u, which has edges in x."""
    coordinates = Compose([Quantiles(BOX, LEVELS), NormalScores((2,))]).fit(box_data())
    energy = JointEnergy(MixtureLogits(torch.ones(3, 2)), Euclidean((2,)), coordinates=coordinates)
    found = laplace_log_z(energy, Euclidean((2,)), starts=torch.zeros(3, 2))
    assert found.log_z == pytest.approx(0.0, abs=1e-3)
    found = laplace_log_z(functools.partial(energy, y=torch.tensor([2])), Euclidean((2,)), starts=torch.zeros(3, 2))
    assert found.log_z == pytest.approx(-math.log(3), abs=1e-3)


def test_other_energies_are_kept():
    module = line_model()
    plain = JointEnergy(net(1), LINE)
    of_class = functools.partial(plain, y=torch.tensor([1]))
    for energy in (plain, of_class, module.chain_energy, torch.sum):
        assert in_coordinates(energy) is energy
    y = torch.tensor([1])
    inner = in_coordinates(functools.partial(functools.partial(module.energy), y=y))
    assert inner.func is module.chain_energy
    assert inner.keywords == {"y": y}
    assert in_coordinates(module.energy) is module.chain_energy
