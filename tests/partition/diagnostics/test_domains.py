"""log Z is asked on the support of the energy, and closed forms assume no reference density."""

import functools
import math

import pytest
import torch
from torch import nn

from ebm_lightning.energies import GaussianEnergy, JointEnergy, MixtureLogits
from ebm_lightning.networks import MLP
from ebm_lightning.partition import Normal, exact_log_z, laplace_log_z, quadrature, reverse_ais
from ebm_lightning.partition.diagnostics.domains import checked_support
from ebm_lightning.rbm import RBMLogits
from ebm_lightning.supports import Binary, Box, Euclidean, Gaussian

PLANE, UNIT = Box(-1, 1, (2,)), Gaussian(0.0, 1.0, (2,))
NORMAL = Normal(torch.zeros(2), torch.ones(2))
TILTED = Box(-1, 1, (2,), Normal(torch.full((2,), 0.3), torch.full((2,), 0.4), PLANE))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (UNIT, PLANE),
        (UNIT, Euclidean((2,))),
        (Euclidean((2,)), UNIT),
        (PLANE, Box(-1, 2, (2,))),
        (PLANE, Box(-2, 1, (2,))),
        (PLANE, Box(-1, 1, (1, 2))),
        (PLANE, TILTED),
        (TILTED, PLANE),
        (UNIT, Gaussian(0.0, 2.0, (2,))),
        (UNIT, Gaussian(torch.tensor([0.0, 1.0]), 1.0, (2,))),
        (Euclidean((2,)), Euclidean((2,), NORMAL)),
        (Binary((2,)), PLANE),
    ],
)
def test_a_support_other_than_that_of_the_energy_is_refused(one, other):
    """Kills: a comparison of the type only, without the walls, without the shape, without the reference."""
    energy = JointEnergy(MLP(2, 3), one)
    labels = functools.partial(energy, y=torch.zeros(1, dtype=torch.long))
    for form in (energy, labels, energy.forward, functools.partial(energy.forward)):
        with pytest.raises(ValueError, match=r"'support' should be that of the energy, .*Pass energy.support"):
            checked_support(form, other)
    for ask in (exact_log_z, laplace_log_z, lambda e, s: reverse_ais(e, s, torch.zeros(9, 2), exact=True)):
        with pytest.raises(ValueError, match="'support' should be that of the energy"):
            ask(energy, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (UNIT, Gaussian(torch.zeros(2), [1.0, 1.0], (2,))),
        (PLANE, Box(-1.0, 1.0, (2,))),
        (Euclidean(), Euclidean((2,))),
        (TILTED, Box(-1, 1, (2,), Normal(torch.full((2,), 0.3), torch.full((2,), 0.4), PLANE))),
    ],
)
def test_equal_supports_agree(one, other):
    energy = JointEnergy(MLP(2, 3), one)
    assert checked_support(energy, other) is other
    assert checked_support(lambda x: energy(x), PLANE) is PLANE
    assert checked_support(GaussianEnergy(torch.zeros(2), torch.ones(2)), PLANE) is PLANE


def test_closed_forms_are_not_used_with_a_reference():
    """Kills: linear_log_z on a box with a reference, the mixture's closed form on R^D with one."""
    energy = JointEnergy(nn.Linear(2, 3), TILTED)
    assert exact_log_z(energy, TILTED).log_z == pytest.approx(quadrature(energy, TILTED), abs=1e-6)
    flat = exact_log_z(JointEnergy(energy.classifier, PLANE), PLANE)
    assert abs(exact_log_z(energy, TILTED).log_z - flat.log_z) > 0.1
    deep = Box(-1, 1, (8,), Normal(torch.zeros(8), torch.ones(8), Box(-1, 1, (8,))))
    tilted_plane = Euclidean((2,), NORMAL)
    for classifier, support in (
        (nn.Linear(8, 3), deep),
        (MixtureLogits(torch.zeros(2, 2)), tilted_plane),
        (MixtureLogits(torch.zeros(2, 2)), UNIT),
    ):
        with pytest.raises(ValueError, match="'energy' should be one whose log Z is known on"):
            exact_log_z(JointEnergy(classifier, support), support)


def test_closed_forms_are_not_used_in_another_dimension():
    column = Box(-1, 1, (4, 2))
    for classifier, support in (
        (nn.Linear(2, 3), column),
        (nn.Linear(8, 3), column),
        (MixtureLogits(torch.zeros(2, 2)), Euclidean((3,))),
    ):
        with pytest.raises(ValueError, match="'energy' should be one whose log Z is known on"):
            exact_log_z(JointEnergy(classifier, support), support)
    with pytest.raises(ValueError, match="'energy' should be one whose log Z is known on"):
        exact_log_z(GaussianEnergy(torch.zeros(3), torch.ones(3)), Euclidean((5,)))
    flat = JointEnergy(nn.Sequential(nn.Flatten(), nn.Linear(8, 3)), column)
    nn.init.zeros_(flat.classifier[1].weight)
    nn.init.zeros_(flat.classifier[1].bias)
    assert exact_log_z(flat, column).log_z == pytest.approx(8 * math.log(2) + math.log(3))


def test_an_rbm_of_binary_units_on_a_box_is_integrated(seed):
    box = Box(0, 1, (2,))
    energy = JointEnergy(RBMLogits(2, 3, 2), box)
    result = exact_log_z(energy, box)
    assert result.log_z == pytest.approx(quadrature(energy, box), abs=1e-6)
    assert abs(result.log_z - exact_log_z(JointEnergy(energy.classifier, Binary((2,))), Binary((2,))).log_z) > 0.5
