import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from ebm_lightning.evaluation.metrics import OODScores


def auroc(inside: torch.Tensor, outside: torch.Tensor, batches: int = 1) -> float:
    metric = OODScores()
    for a, b in zip(inside.chunk(batches), outside.chunk(batches), strict=True):
        metric.update(a, b)
    return float(metric.compute()["auroc"])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_auroc_is_the_area_under_the_curve(seed, scale):
    inside, outside = scale * (torch.randn(300) + 1), scale * torch.randn(200)
    expected = roc_auc_score([1] * 300 + [0] * 200, torch.cat([inside, outside]))
    assert auroc(inside, outside, batches=4) == pytest.approx(expected, abs=1e-6)


def test_ties_count_half(seed):
    inside, outside = torch.randint(3, (100,)).float(), torch.randint(3, (100,)).float()
    expected = roc_auc_score([1] * 100 + [0] * 100, torch.cat([inside, outside]))
    assert auroc(inside, outside) == pytest.approx(expected, abs=1e-6)
    assert auroc(torch.zeros(5), torch.zeros(5)) == 0.5


def test_large_scores_are_distinguished():
    """The sigmoid that torchmetrics applies would round both to exactly 1."""
    assert auroc(torch.full((5,), 300.0), torch.full((5,), 200.0)) == 1


def test_infinite_scores_rank_last_and_nan_raises():
    assert auroc(torch.tensor([1.0, 2.0]), torch.tensor([-math.inf, -math.inf])) == 1
    with pytest.raises(ValueError, match="'outside' should hold no NaN, got 1 of 2"):
        auroc(torch.zeros(2), torch.tensor([math.nan, 0.0]))


def fpr95(inside: torch.Tensor, outside: torch.Tensor) -> float:
    metric = OODScores()
    metric.update(inside, outside)
    return float(metric.compute()["fpr95"])


def test_fpr95_of_a_small_example():
    """Of 20 in-distribution images 19 have to be kept, so the threshold is the second lowest score, 2."""
    inside = torch.arange(1.0, 21.0)
    assert fpr95(inside, torch.tensor([0.0, 1.0, 1.5, 2.0, 30.0])) == pytest.approx(2 / 5)
    assert fpr95(inside, torch.tensor([0.0, 1.5])) == 0
    assert fpr95(torch.tensor([3.0]), torch.tensor([2.0, 3.0])) == 0.5, "the only image has to be kept"


def test_fpr95_with_ties_and_infinities():
    """If all scores are equal, all out-of-distribution data are accepted."""
    assert fpr95(torch.ones(100), torch.tensor([1.0, 1.0, 0.5])) == pytest.approx(2 / 3)
    inside = torch.cat([torch.full((6,), -math.inf), torch.full((94,), 5.0)])  # 95 have to be kept: down to -inf
    assert fpr95(inside, torch.tensor([-math.inf, 0.0])) == 1
    inside = torch.cat([torch.full((5,), -math.inf), torch.full((95,), math.inf)])
    assert fpr95(inside, torch.tensor([-math.inf, 1e30, math.inf])) == pytest.approx(1 / 3)


@pytest.mark.parametrize("n", [1, 19, 20, 21, 100, 140, 1000, 2220])
def test_fpr95_uses_the_largest_threshold_that_keeps_95_percent(seed, n):
    """Compared with the definition, over all thresholds. In floating point, 0.95 * 2220 is not 2109."""
    inside, outside = torch.randint(40, (n,)).float() + 4, torch.randint(40, (300,)).float()
    kept = [t for t in inside.unique() if 20 * int((inside >= t).sum()) >= 19 * n]
    assert fpr95(inside, outside) == pytest.approx(float((outside >= max(kept)).float().mean()), abs=1e-6)
