"""Flows: what the fit learns, and that it is a fixed part of the model afterwards.

Mutants that these tests kill: the log-likelihood of a base alone; one pass instead of ``epochs``; weights that stay
trainable or keep a gradient; energies of a flow in bfloat16.
"""

import pytest
import torch
import zuko
from torch import Tensor

from ebm_lightning.coordinates import Compose, Flow, Whitening
from tests.coordinates.kinds import fitted, log_q, plane_data, small_flow


def moons(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=generator)
    return torch.stack([x[:, 0], x[:, 0].square() + 0.3 * x[:, 1]], 1)


def test_the_density_of_the_flow_is_the_reference():
    coordinates, x = fitted("flow"), plane_data(50).float()
    with torch.no_grad():
        assert torch.allclose(log_q(coordinates, x).float(), coordinates.flow().log_prob(x), atol=1e-5)


@pytest.mark.slow
def test_a_fitted_flow_is_likelier_on_new_data_than_a_gaussian(seed):
    """Of a curved density, over 2 nats: a Gaussian does not bend."""
    torch.manual_seed(0)
    flow = Flow(zuko.flows.NSF(2, transforms=2, hidden_features=(32,)), (2,), epochs=25, learning_rate=5e-3)
    x, new = moons(2000, 0), moons(2000, 1)
    bent = Compose([Whitening((2,)), flow]).fit(x.split(200))
    with torch.no_grad():
        gain = log_q(bent, new).mean() - log_q(Whitening((2,)).fit(x), new).mean()
    assert gain > 0.5


def test_each_epoch_reads_all_batches():
    reads = []

    class Batches:
        def __iter__(self):
            reads.append(0)
            return iter(plane_data(64).split(32))

    small_flow().fit(Batches())
    assert len(reads) == 4


def test_a_trained_flow_is_kept():
    trained = fitted("flow").flow
    before = [p.clone() for p in trained.parameters()]
    coordinates = Flow(trained, (2,), epochs=0)
    assert coordinates.fitted
    coordinates.fit(plane_data())
    assert all(torch.equal(a, b) for a, b in zip(before, trained.parameters(), strict=True))


def test_the_flow_stays_frozen_and_in_eval_mode():
    coordinates = small_flow().fit(plane_data(64))
    coordinates.train()
    assert not any(m.training for m in coordinates.flow.modules())
    assert not any(p.requires_grad or p.grad is not None for p in coordinates.parameters())


def test_autocast_does_not_change_the_map():
    coordinates, x = fitted("flow"), plane_data(100).float()
    with torch.no_grad():
        u = coordinates(x)
        expected = u, coordinates.inv(u), coordinates.log_abs_det_jacobian(x, u)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = coordinates(x), coordinates.inv(u), coordinates.log_abs_det_jacobian(x, u)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_diverging_fit_stops():
    coordinates = small_flow()
    coordinates.learning_rate = 1e30
    with pytest.raises(ValueError, match=r"'learning_rate' should be lower, got 1e\+30: the loss of the flow is"):
        coordinates.fit([plane_data(64)] * 4)
    assert not coordinates.fitted
    assert not any(p.requires_grad for p in coordinates.parameters())
