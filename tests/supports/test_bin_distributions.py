"""Histograms and logistic mixtures: one distribution function, whatever is asked of it.

Mutants that these tests kill: an edge of the wrong bin; open ends that are closed; a search that stops one bin early; a
training loss of another distribution; a difference of two sigmoids that cancels.
"""

import math

import pytest
import torch
from torch import Tensor

from ebm_lightning.rng import make_generator
from ebm_lightning.supports.bin_distributions import BinDistribution, Histograms, LogisticMixtures

BINS, PIXELS = 7, 50


def made(kind: str, spread: float) -> BinDistribution:
    generator = make_generator(0, kind)
    if kind == "histograms":
        return Histograms(spread * torch.randn(PIXELS, BINS, generator=generator), torch.tensor(BINS - 1))
    return LogisticMixtures(spread * torch.randn(PIXELS, 6, generator=generator), BINS)


@pytest.fixture(params=[("histograms", 1.0), ("logistic", 1.0), ("logistic", 10.0)], ids=str)
def distribution(request: pytest.FixtureRequest) -> BinDistribution:
    return made(*request.param)


def every(j: int) -> Tensor:
    return torch.full((PIXELS,), j)


def test_probabilities_add_up_to_the_distribution_function(distribution: BinDistribution) -> None:
    total = torch.zeros(PIXELS, dtype=torch.float64)
    for j in range(BINS):
        below, at = distribution.below_and_at(every(j))
        torch.testing.assert_close(below, total, atol=1e-6, rtol=0)
        total = total + at
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)


def test_the_search_inverts_it(distribution: BinDistribution) -> None:
    for j in range(BINS):
        below, at = distribution.below_and_at(every(j))
        wide = at > 1e-6
        assert (distribution.index_at(below + at / 2) == j)[wide].all()
    assert (distribution.index_at(torch.ones(PIXELS, dtype=torch.float64)) == BINS - 1).all()


def test_the_loss_is_its_negative_log_probability(distribution: BinDistribution) -> None:
    for j in range(BINS):
        expected = -distribution.below_and_at(every(j))[1].log().mean()
        assert distribution.loss(every(j)).item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_mixture_of_one_is_a_logistic_distribution() -> None:
    """With mean .2 and scale e^-1, at the edges of four bins: -1, -.5, 0, .5 and 1."""
    mixture = LogisticMixtures(torch.tensor([[0.0, 0.2, -1.0]]), 4)
    edge = lambda x: 1 / (1 + math.exp(-(x - 0.2) * math.e))  # noqa: E731
    expected = [edge(-0.5), edge(0) - edge(-0.5), edge(0.5) - edge(0), 1 - edge(0.5)]
    for j, p in enumerate(expected):
        at = mixture.below_and_at(torch.tensor([j]))[1].item()
        assert at == pytest.approx((1 - 1e-4) * p + 1e-4 / 4, abs=1e-7)


def test_a_gray_level_far_from_a_narrow_mixture_is_possible() -> None:
    parameters = torch.tensor([[0.0, -1.0, -20.0]], requires_grad=True)
    loss = LogisticMixtures(parameters, 256).loss(torch.tensor([255]))
    assert loss.item() == pytest.approx(-math.log(1e-4 / 256), rel=1e-3)
    loss.backward()
    assert parameters.grad is not None
    assert parameters.grad.isfinite().all()
