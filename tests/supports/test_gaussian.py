import pytest
import torch

from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Gaussian
from tests.conftest import gaussian_z


def test_density_is_that_of_torch(seed):
    mean, std = torch.randn(2, 3), torch.rand(2, 3) + 0.5
    x = torch.randn(5, 2, 3)
    expected = torch.distributions.Normal(mean, std).log_prob(x).sum((1, 2))
    torch.testing.assert_close(Gaussian(mean, std, (2, 3)).log_q(x), expected)
    torch.testing.assert_close(Gaussian(mean, std, (2, 3)).log_prob(x), expected.double(), atol=1e-5, rtol=1e-5)


def test_samples_have_the_mean_and_variance(seed):
    x = Gaussian(1.0, [2.0], (1,)).sample(50_000, generator=make_generator(seed, "gaussian"))
    assert gaussian_z(x[:, 0], 1.0, 4.0) < 5


def test_destandardize_inverts_standardize():
    support, x = Gaussian([0.5, -1.0], 2.0, (2,)), torch.randn(5, 2)
    torch.testing.assert_close(support.destandardize(support.standardize(x)), x)
    assert support.standardize(torch.tensor([[2.5, 1.0]])).tolist() == [[1, 1]]


def test_std_has_to_be_positive():
    with pytest.raises(ValueError, match="'std' should be positive"):
        Gaussian(0.0, [1.0, 0.0], (2,))
