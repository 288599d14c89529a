"""evaluate_ood: detectors on the same features, with intervals and seconds."""

import math

import pytest
import torch
from torch import nn

from ebm_lightning import FeatureJEM, evaluate_ood
from ebm_lightning.evaluation.bootstrap import bootstrap_intervals
from ebm_lightning.evaluation.feature_detectors import NetworkOutputs, OfModel, pytorch_ood_detectors
from ebm_lightning.evaluation.feature_scores import FEATURE_SCORES, feature_density, made_features, ratio_to_reference
from ebm_lightning.evaluation.ood_comparison import OURS, compare_scores

K, D = 3, 6


def classes(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.arange(n) % K
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)) + 3 * nn.functional.one_hot(y, 4), y


@pytest.fixture(scope="module")
def model() -> FeatureJEM:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, D), nn.Tanh(), nn.Linear(D, K)).eval()
    return FeatureJEM(network, K, seed=0).fit(classes(300, 0), max_steps=3, progress_bar=False)


def outputs(model: FeatureJEM, n: int, seed: int) -> NetworkOutputs:
    x, y = classes(n, seed)
    with torch.no_grad():
        z, logits = model.network_features.with_logits(x)
    return NetworkOutputs(z, logits, y)


def test_all_detectors_and_sets_are_in_the_table(model):
    pytest.importorskip("pytorch_ood")
    near, far = {"shifted": classes(60, 2)[0] - 1}, {"noise": 5 * torch.randn(40, 4)}
    results = evaluate_ood(
        model, classes(90, 1), near, far, train=classes(300, 0), val=classes(60, 3), resamples=20, progress_bar=False
    )
    names = {OURS, "plain energy", "maximum softmax", "entropy", "scaled energy", "KNN", "Mahalanobis", "ViM", "ReAct"}
    assert {row.detector for row in results.rows} == names
    assert {(row.data, row.near) for row in results.rows} == {("shifted", True), ("noise", False)}
    for row in results.rows:
        for metric, value in row.values.items():
            low, high = row.intervals[metric]
            assert 0 <= low <= value + 0.05
            assert value - 0.05 <= high <= 1
    metrics = results.metrics()
    assert {f"{OURS}/noise/auroc", "KNN/shifted/fpr95_low", "ViM/fit_seconds", "forward_seconds"} <= set(metrics)
    assert all(math.isfinite(value) for value in metrics.values())
    for metric in ("auroc", "fpr95", "aupr_in", "aupr_out"):
        assert len(results.table(metric).splitlines()) == 11
    with pytest.raises(ValueError, match="'metric' should be one of auroc"):
        results.table("f1")


def test_scores_are_larger_inside(model):
    """Mutants: the sign of a detector of pytorch-ood."""
    pytest.importorskip("pytorch_ood")
    train, inside = outputs(model, 300, 0), outputs(model, 90, 1)
    far = inside._replace(features=10 * torch.randn(90, D), logits=torch.zeros(90, K))
    for name, detector in pytorch_ood_detectors(model.network_features.last_linear).items():
        if name != "ReAct":  # its logits are those of the features
            detector.fit(train, outputs(model, 60, 3))
            assert compare_scores(detector.score(inside), detector.score(far), 2)[0]["auroc"] > 0.6, name


def test_the_logits_of_react_are_those_of_the_network(model):
    """Above the threshold of its clipping. Mutant: weights without the bias."""
    pytest.importorskip("pytorch_ood")
    detector = pytorch_ood_detectors(model.network_features.last_linear)["ReAct"]
    detector.detector.threshold = 1e9
    data = outputs(model, 20, 1)
    torch.testing.assert_close(detector.score(data), data.logits.logsumexp(1).double())


def test_detectors_of_the_last_layer_are_left_out_without_one():
    pytest.importorskip("pytorch_ood")
    assert not {"ViM", "ReAct"} & set(pytorch_ood_detectors())


def test_scores_of_the_model_are_those_of_its_methods(model):
    x = classes(30, 1)[0]
    data = outputs(model, 30, 1)
    torch.testing.assert_close(OfModel(model).score(data), model.score(x).double())
    density = OfModel(model, feature_density).score(data)
    torch.testing.assert_close(density, -model.energy(data.features).double())
    reference = OfModel(model, FEATURE_SCORES["the Gaussians alone"]).score(data)
    ratio = OfModel(model, ratio_to_reference).score(data)
    torch.testing.assert_close(reference + ratio, model.score(x).double())


def test_own_detectors_are_taken(model):
    class Length:
        def fit(self, train, val):
            self.longest = train.features.norm(dim=1).max()

        def score(self, data):
            return self.longest - data.features.norm(dim=1)

    sets = {"noise": torch.randn(20, 4)}
    common = {"train": classes(90, 0), "val": classes(30, 3), "resamples": 3, "progress_bar": False}
    results = evaluate_ood(model, classes(30, 1), {}, sets, detectors={"length": Length()}, **common)
    assert {row.detector for row in results.rows} == {OURS, "length"}


@pytest.mark.parametrize(
    ("near", "far", "message"),
    [({}, {}, "got none"), ({"a": torch.zeros(3, 4)}, {"a": torch.zeros(3, 4)}, "got a in both")],
)
def test_sets_are_checked(model, near, far, message):
    with pytest.raises(ValueError, match=message):
        evaluate_ood(model, classes(30, 1), near, far, train=classes(30, 0), val=classes(30, 0), progress_bar=False)


def test_labels_are_needed_to_fit(model):
    with pytest.raises(ValueError, match="'train' and 'val' should have labels"):
        evaluate_ood(
            model,
            classes(30, 1),
            {"a": torch.zeros(9, 4)},
            {},
            train=classes(30, 0)[0],
            val=classes(30, 0),
            progress_bar=False,
        )


def test_resamples_are_around_the_metrics(seed):
    """With ties. Mutants: precision without the tied scores; the threshold of FPR95 one off; in and out swapped."""
    inside, outside = (torch.randn(400) + 1.2).round(decimals=1), torch.randn(300).round(decimals=1)
    values, _ = compare_scores(inside, outside, 2)
    for name, (low, high) in bootstrap_intervals(inside, outside, 400, seed=seed).items():
        half = (high - low) / 2
        assert low < values[name] < high, name
        assert 0.005 < half < 0.15, name


def test_a_resample_of_itself_has_the_same_metrics():
    """Weights of one are the data. Mutants as above, exactly."""
    from ebm_lightning.evaluation.bootstrap import _metrics

    torch.manual_seed(0)
    inside, outside = (torch.randn(101) + 1).round(decimals=1), torch.randn(80).round(decimals=1)
    levels, rank = torch.cat([inside, outside]).unique(return_inverse=True)
    counts = [r.bincount(minlength=len(levels)).double()[None] for r in rank.split([101, 80])]
    found = {name: float(value) for name, value in _metrics(*counts).items()}
    assert found == pytest.approx(compare_scores(inside, outside, 2)[0], abs=1e-6)


def test_the_interval_covers(seed):
    """Of 60 pairs of sets from equal distributions, about 95 % of the intervals contain 1/2."""
    covered = 0
    for _ in range(60):
        low, high = bootstrap_intervals(torch.randn(80), torch.randn(80), 200)["auroc"]
        covered += low <= 0.5 <= high
    assert covered >= 49  # 5 standard errors below 57


def test_made_features_keep_what_they_say(seed):
    z = torch.randn(2000, 3) @ torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 2.0]]) + 1
    made = made_features(z, seed)
    assert torch.equal(made["shuffled"].sort(0).values, z.sort(0).values)
    assert made["shuffled"].T.corrcoef()[0, 1].abs() < 0.12  # 5 standard errors of independent components
    assert torch.equal(made["shuffled and halved"], made["shuffled"] / 2)
    torch.testing.assert_close(made["Gaussian"].T.cov(), z.T.cov(), atol=0.5, rtol=0.1)
    assert made["means of two"].var(0).max() < 0.7 * z.var(0).max()
