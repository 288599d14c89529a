"""Comparisons of two samples, over many seeds: calibrated where both are equal, and sensitive where they differ.

Mutants that these tests kill: weights that are ignored, or that only select rows; an error without the weights;
a distance without the half; accuracy on the rows that train; features without squares; samples of unequal size that
count by their size.
"""

import math

import pytest
import torch
from torch import Tensor

from ebm_lightning.evaluation.two_samples import class_distance, energy_gap, two_sample_accuracy
from ebm_lightning.rng import make_generator
from tests.conftest import z_score

RUNS = 80


def normal(seed: int, run: int, name: str, n: int = 400, size: int = 3) -> Tensor:
    return torch.randn(n, size, generator=make_generator(seed, name, run))


def tilted(seed: int, run: int, n: int = 400) -> tuple[Tensor, Tensor]:
    """Draws around 1.1 in the first component with weights that make them standard normal; a third of them counts."""
    x = normal(seed, run, "tilted", n)
    x[:, 0] += 1.1
    return x, (-0.5 * x[:, 0].square() + 0.5 * (x[:, 0] - 1.1).square()).double()


def is_calibrated(values: list[float], errors: list[float]) -> bool:
    """Whether (value / error) has mean 0, and a standard deviation near 1."""
    z = torch.tensor(values, dtype=torch.float64) / torch.tensor(errors, dtype=torch.float64)
    return z_score(z, 0.0) < 5 and 0.7 < float(z.std()) < 1.3


def test_the_gap_of_equal_samples_is_0_within_its_error(seed):
    plain, weighted = [], []
    for run in range(RUNS):
        x, y = normal(seed, run, "fresh"), normal(seed, run, "other", 300)
        plain.append(energy_gap(x.square().sum(1) / 2, y.square().sum(1) / 2, torch.zeros(300)))
        y, log_w = tilted(seed, run)
        weighted.append(energy_gap(x.square().sum(1) / 2, y.square().sum(1) / 2, log_w + 1000))
    for pairs in (plain, weighted):
        assert is_calibrated(*map(list, zip(*pairs, strict=True)))


def test_the_gap_of_other_samples_is_their_difference():
    gap, error = energy_gap(torch.tensor([3.0, 5.0]), torch.tensor([1.0, 2.0]), torch.tensor([0.0, math.log(3)]))
    assert gap == pytest.approx(4 - 1.75)
    variance = 2 / 2 + (0.25**2 * 0.75**2 + 0.75**2 * 0.25**2)
    assert error == pytest.approx(math.sqrt(variance))


def test_the_distance_of_exact_shares_is_its_noise(seed):
    prior, distances, noises = torch.tensor([0.6, 0.3, 0.1]), [], []
    for run in range(300):
        y = torch.multinomial(prior, 200, replacement=True, generator=make_generator(seed, run))
        log_p = torch.nn.functional.one_hot(y, 3).double().log()
        distance, noise = class_distance(log_p, prior.double())
        distances.append(distance)
        noises.append(noise)
    assert z_score(torch.tensor(distances), sum(noises) / len(noises)) < 5
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.3, 0.6]]).log()
    assert class_distance(shares, torch.tensor([0.6, 0.3, 0.1]))[0] == pytest.approx((0.3 + 0.1 + 0.2) / 2)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n", [400, 151])
def test_nothing_tells_equal_samples_apart(weighted, n, seed):
    """Also with weights of which a third counts, and with samples of unequal and odd sizes."""
    values, errors = [], []
    for run in range(RUNS):
        fresh = normal(seed, run, "fresh", n)
        other, log_w = tilted(seed, run) if weighted else (normal(seed, run, "other"), None)
        accuracy, error = two_sample_accuracy(fresh, other, log_w, seed=run)
        values.append(accuracy - 0.5)
        errors.append(error)
    assert is_calibrated(values, errors)


def test_weights_that_are_ignored_are_found(seed):
    values = [two_sample_accuracy(normal(seed, r, "fresh"), tilted(seed, r)[0], seed=r)[0] for r in range(10)]
    assert sum(values) / 10 == pytest.approx(0.7088, abs=0.05), "Phi(0.55)"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x + torch.tensor([1.0, 0.0, 0.0]), 0.6915),  # Phi(1 / 2)
        (lambda x: x + 50, 1.0),
        (lambda x: 1.5 * x, 0.68),
        (lambda x: x * torch.tensor([2.0, 1.0, 1.0]), 0.66),
    ],
    ids=["shift", "far", "scale", "scale of one"],
)
def test_other_samples_are_told_apart(change, expected, seed):
    values = []
    for run in range(6):
        accuracy, error = two_sample_accuracy(normal(seed, run, "a", 1000), change(normal(seed, run, "b", 1000)))
        assert error == pytest.approx(0.5 / math.sqrt(1000))
        values.append(accuracy)
    assert sum(values) / 6 == pytest.approx(expected, abs=0.03)


def test_a_constant_component_says_nothing(seed):
    a, b = (torch.cat([normal(seed, 0, name), torch.full((400, 1), 1e3)], 1) for name in "ab")
    accuracy, error = two_sample_accuracy(a, b)
    assert abs(accuracy - 0.5) < 5 * error


def test_the_split_is_that_of_the_seed(seed):
    a, b, before = normal(seed, 0, "a"), normal(seed, 0, "b"), torch.get_rng_state()
    assert two_sample_accuracy(a, b, seed=1) == two_sample_accuracy(a, b, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
