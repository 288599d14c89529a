import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from ebm_lightning.metrics import OODScores


def auroc(inside: torch.Tensor, outside: torch.Tensor, batches: int = 1) -> float:
    metric = OODScores()
    for a, b in zip(inside.chunk(batches), outside.chunk(batches), strict=True):
        metric.update(a, b)
    return float(metric.compute()["auroc"])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_is_the_area_under_the_curve(seed, scale):
    inside, outside = scale * (torch.randn(300) + 1), scale * torch.randn(200)
    expected = roc_auc_score([1] * 300 + [0] * 200, torch.cat([inside, outside]))
    assert auroc(inside, outside, batches=4) == pytest.approx(expected, abs=1e-6)


def test_ties_count_half(seed):
    inside, outside = torch.randint(3, (100,)).float(), torch.randint(3, (100,)).float()
    expected = roc_auc_score([1] * 100 + [0] * 100, torch.cat([inside, outside]))
    assert auroc(inside, outside) == pytest.approx(expected, abs=1e-6)
    assert auroc(torch.zeros(5), torch.zeros(5)) == 0.5


def test_scores_of_hundreds_are_told_apart():
    """A sigmoid, which torchmetrics would apply, makes both of these exactly 1."""
    assert auroc(torch.full((5,), 300.0), torch.full((5,), 200.0)) == 1


def test_infinite_scores_rank_last_and_nan_is_refused():
    assert auroc(torch.tensor([1.0, 2.0]), torch.tensor([-math.inf, -math.inf])) == 1
    with pytest.raises(ValueError, match="'outside' should hold no NaN, got 1 of 2"):
        auroc(torch.zeros(2), torch.tensor([math.nan, 0.0]))
