"""RadialPower: the length of a vector to a power, with its Jacobian."""

import pytest
import torch

from ebm_lightning import FeatureJEM, RadialPower


def test_length_is_raised_to_the_power_and_direction_is_kept(seed):
    x = torch.randn(20, 5, dtype=torch.float64) * 3
    u = RadialPower((5,), 0.3)(x)
    torch.testing.assert_close(u.norm(dim=1), x.norm(dim=1) ** 0.3)
    torch.testing.assert_close(torch.cosine_similarity(u, x), torch.ones(20, dtype=torch.float64))


def test_jacobian_agrees_with_automatic_differentiation(seed):
    """Mutants: D - 1 for D in the exponent; without log p; |u| for |x|."""
    coordinates = RadialPower((2, 3), 0.4)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    for row in x:
        matrix = torch.autograd.functional.jacobian(lambda z: coordinates(z[None])[0].flatten(), row).reshape(6, 6)
        found = coordinates.log_abs_det_jacobian(row[None], coordinates(row[None]))
        torch.testing.assert_close(found[0], torch.linalg.slogdet(matrix)[1])


def test_zero_stays_zero():
    u = RadialPower((3,))(torch.zeros(2, 3))
    assert torch.equal(u, torch.zeros(2, 3))
    assert torch.isfinite(RadialPower((3,)).log_abs_det_jacobian(torch.zeros(2, 3), u)).all()


@pytest.mark.parametrize("power", [0.0, 1.5, -1.0, "a"])
def test_power_is_checked(power):
    with pytest.raises(ValueError, match="'power' should be"):
        RadialPower((3,), power)


def test_features_have_these_coordinates_by_default():
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).eval()
    assert isinstance(FeatureJEM(network, 2).coordinates.parts[0], RadialPower)
