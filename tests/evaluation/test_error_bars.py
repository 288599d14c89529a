"""Standard errors, against the spread of many independent data sets or against another implementation."""

import math

import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from ebm_lightning.evaluation.error_bars import (
    Z,
    accuracy_difference,
    auroc_std_err,
    calibration_error,
    ece_resamples,
    fid_std_err,
    fpr_std_err,
    fraction_std_err,
    kid_std_err,
    placements,
    wilson,
)

REPEATS = 400


def spread_of(values: list[float]) -> tuple[float, float]:
    """The standard deviation of many estimates, and five of its standard errors."""
    std = float(torch.tensor(values).std())
    return std, 5 * std / math.sqrt(2 * len(values))


@pytest.mark.parametrize(("k", "n"), [(0, 20), (17, 20), (360, 360)])
def test_wilson_agrees_with_scipy(k, n):
    expected = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k / n, n) == pytest.approx((expected.low, expected.high), abs=1e-4)
    assert fraction_std_err(k / n, n) > 0


def test_placements_average_to_the_auroc():
    inside, outside = torch.tensor([3.0, 1.0, 1.0, math.inf]), torch.tensor([-math.inf, 1.0, 2.0])
    expected = roc_auc_score([1] * 4 + [0] * 3, [3, 1, 1, 99, -99, 1, 2])
    assert [float(part.mean()) for part in placements(inside, outside)] == pytest.approx([expected] * 2)


def test_the_error_of_an_auroc_is_its_spread(seed):
    """Kills: one of the two sets left out, variances divided by the number of the other set."""
    generator = torch.Generator().manual_seed(seed)
    values, errors = [], []
    for _ in range(REPEATS):
        parts = placements(torch.randn(40, generator=generator) + 1, 2 * torch.randn(160, generator=generator))
        values.append(float(parts[0].mean()))
        errors.append(auroc_std_err(*parts))
    std, tolerance = spread_of(values)
    assert sum(errors) / REPEATS == pytest.approx(std, abs=tolerance)


def test_perfect_separation_is_not_certainty():
    assert auroc_std_err(*placements(torch.ones(50), torch.zeros(20))) == 0.5 / 20


def test_only_images_with_different_outcomes_count():
    right = torch.arange(100) < 90
    assert accuracy_difference(right, right)[0] == 0
    difference, error = accuracy_difference(right, right & (torch.arange(100) >= 10))
    assert difference == pytest.approx(0.1)
    assert error < 0.8 * math.hypot(*[fraction_std_err(p, 100) for p in (0.9, 0.8)])


def test_a_few_disagreements_are_not_a_difference():
    difference, error = accuracy_difference(torch.ones(500).bool(), torch.arange(500) >= 3)
    assert 0 < difference < Z * error


def test_the_bootstrap_of_the_calibration_error_has_its_spread(seed):
    generator = torch.Generator().manual_seed(seed)
    values, errors = [], []
    for k in range(REPEATS):
        confidence = 0.5 + 0.5 * torch.rand(200, generator=generator)
        correct = torch.rand(200, generator=generator) < confidence - 0.2
        values.append(float(calibration_error(confidence, correct, 10)))
        if k < 20:
            errors.append(float(ece_resamples(confidence, correct, 10).std()))
    std, tolerance = spread_of(values)
    assert sum(errors) / len(errors) == pytest.approx(std, abs=tolerance)


def test_models_get_the_same_resamples():
    confidence, correct = torch.rand(50), torch.rand(50) < 0.5
    assert torch.equal(*[ece_resamples(confidence, correct, 5, 20) for _ in range(2)])


def test_the_error_of_fid_is_its_spread(seed):
    """The jackknife is compared within a factor, because FID is biased for few samples."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.randn(2000, 3, generator=generator)
    values, errors = [], []
    for _ in range(60):
        fake = 1.5 * torch.randn(200, 3, generator=generator) + 0.5
        mean, cov = real.double().mean(0) - fake.double().mean(0), [x.double().T.cov() for x in (real, fake)]
        trace = torch.linalg.eigvals(cov[0] @ cov[1]).sqrt().sum().real
        values.append(float(mean.square().sum() + cov[0].trace() + cov[1].trace() - 2 * trace))
        errors.append(fid_std_err(real, fake))
    assert sum(errors) / 60 == pytest.approx(spread_of(values)[0], rel=0.5)


@pytest.mark.parametrize(("n", "m", "distance"), [(200, 400, 1.5), (1000, 100, 3.0)])
def test_the_error_of_fpr95_is_its_spread(seed, n, m, distance):
    """Kills: an error from one of the two sets only, or of another quantile."""
    values, errors, kept = [], [], math.ceil(0.95 * n)
    for _ in range(REPEATS):
        inside, outside = torch.randn(n) + distance, torch.randn(m)
        values.append(float((outside >= inside.sort(descending=True).values[kept - 1]).float().mean()))
        errors.append(fpr_std_err(inside, outside, kept))
    spread, tolerance = spread_of(values)
    assert math.sqrt(sum(e**2 for e in errors) / REPEATS) == pytest.approx(spread, abs=tolerance + 0.1 * spread)


def test_the_error_of_fpr95_is_positive_without_overlap_and_takes_infinities():
    assert 0 < fpr_std_err(torch.full((100,), math.inf), torch.zeros(50), 95) < 0.05
    assert 0 < fpr_std_err(torch.zeros(3), torch.zeros(1), 3) < 1


def test_the_error_of_kid_is_its_spread(seed):
    """Kills: an error that takes the diagonal of the kernel along, or that of fewer samples for that of many."""
    real, values, errors = torch.randn(400, 6).double(), [], []
    for _ in range(REPEATS // 4):
        fake = 1.2 * torch.randn(150, 6).double() + 0.3
        within, between = ((fake @ other.T / 6 + 1) ** 3 for other in (fake, real))
        unbiased = (within.sum() - within.diagonal().sum()) / (150 * 149)
        values.append(float(unbiased - 2 * between.mean()))
        errors.append(kid_std_err(real, fake))
    spread, tolerance = spread_of(values)
    assert math.sqrt(sum(e**2 for e in errors) / len(errors)) == pytest.approx(spread, abs=tolerance)


def test_the_error_of_kid_falls_with_many_samples(seed):
    real, fake = torch.randn(500, 2), 1.5 * torch.randn(12_000, 2)
    few, many = kid_std_err(real, fake[:3000]), kid_std_err(real, fake)
    assert few / many == pytest.approx(2, rel=0.6)
