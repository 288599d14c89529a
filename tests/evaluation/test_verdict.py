"""Which model is better, and what is said about it.

Mutants that these kill: a mark on a tie, on a value below chance, on an FID worse than where chains start, on a
likelihood from an unreliable log Z, and a sign of a paired difference that is wrong for the second model.
"""

from typing import Any

import pytest

from ebm_lightning.evaluation.report import Comparison, comparison_table, results_table, verdicts

METRICS = {
    "test/accuracy": 0.9,
    "test/images": 400.0,
    "test/nll": 0.3,
    "test/nll_std_err": 0.01,
    "test/ece": 0.02,
    "test/ece_std_err": 0.005,
    "ood/noise/log_density/auroc": 0.9,
    "ood/noise/log_density/auroc_std_err": 0.01,
    "ood/noise/auroc": 0.9,
    "samples/fid_net": 9.0,
    "samples/fid_net_std_err": 0.5,
    "samples/fid_net_start": 20.0,
    "samples/fid_net_floor": 1.0,
    "samples/kid_net": 0.5,
    "samples/kid_net_start": 0.9,
    "samples/is_net": 2.0,
    "ais/bits_per_dim": 1.5,
    "ais/bits_per_dim_std_err": 0.01,
    "ais/log_likelihood": -800.0,
    "ais/log_likelihood_std_err": 1.0,
    "ais/reliable": 1.0,
    "robust/clean": 0.9,
    "robust/linf_0.1": 0.4,
    "robust/images": 100.0,
}
AUROC = "ood/noise/log_density/auroc"


def compare(paired: dict[str, float] | None = None, **changes: Any) -> Comparison:
    """A JEM with METRICS, and a classifier that differs in the metrics given as ``dict(key=value)``."""
    return Comparison({"JEM": METRICS, "classifier": METRICS | changes}, paired)


def word(comparison: Comparison, topic: str) -> str:
    return next(v.word for v in verdicts(comparison) if v.topic.startswith(topic))


@pytest.mark.parametrize(
    ("key", "better", "value"),
    [
        ("test/accuracy", "higher", 0.8),
        ("test/nll", "lower", 0.4),
        ("test/ece", "lower", 0.05),
        (AUROC, "higher", 0.8),
        ("samples/fid_net", "lower", 12.0),
        ("ais/log_likelihood", "higher", -810.0),
        ("robust/linf_0.1", "higher", 0.2),
    ],
)
def test_the_better_model_is_marked_beyond_the_error(key, better, value):
    assert compare(**{key: value}).winner(key, better) == "JEM"
    near = METRICS[key] + 0.1 * (value - METRICS[key])
    assert compare(**{key: near}).winner(key, better) is None
    assert compare().winner(key, better) is None


def test_bits_are_ranked_by_the_error_of_the_likelihood():
    assert compare(**{"ais/log_likelihood": -810.0}).winner("ais/bits_per_dim", "lower") == "JEM"


def test_paired_differences_replace_independent_errors():
    paired = {"compared/test/accuracy": 0.01, "compared/test/accuracy_std_err": 0.002}
    assert compare(paired, **{"test/accuracy": 0.89}).winner("test/accuracy", "higher") == "JEM"
    paired["compared/test/accuracy"] = -0.01
    assert compare(paired, **{"test/accuracy": 0.91}).winner("test/accuracy", "higher") == "classifier"


@pytest.mark.parametrize(
    ("key", "better", "own", "other"),
    [
        (AUROC, "higher", {AUROC: 0.3}, {AUROC: 0.1}),
        (AUROC, "higher", {AUROC: 0.51}, {AUROC: 0.4}),
        ("samples/fid_net", "lower", {"samples/fid_net": 21.0}, {"samples/fid_net": 30.0}),
        ("ais/log_likelihood", "higher", {"ais/reliable": 0.0}, {"ais/log_likelihood": -900.0}),
        ("ais/log_likelihood", "higher", {}, {"ais/log_likelihood": -900.0, "ais/reliable": 0.0}),
        ("samples/kid_net", "lower", {}, {"samples/kid_net": 0.8}),
    ],
    ids=["below chance", "at chance", "worse than its start", "unreliable", "other unreliable", "no error"],
)
def test_values_that_mean_nothing_are_not_marked(key, better, own, other):
    results = {"JEM": METRICS | own, "classifier": METRICS | other}
    assert Comparison(results).winner(key, better) is None
    assert "*" not in results_table(results).removesuffix(results_table(results).splitlines()[-1])


@pytest.mark.parametrize(
    ("topic", "changes", "expected"),
    [
        ("Accuracy", {"test/accuracy": 0.8}, "better"),
        ("Accuracy", {"test/accuracy": 0.97}, "worse"),
        ("Accuracy", {"test/accuracy": 0.91}, "the same within error"),
        ("Calibration", {"test/ece": 0.05}, "better"),
        ("Out-of", {AUROC: 0.8}, "better"),
        ("Out-of", {AUROC: 0.99}, "worse"),
        ("Likelihood", {"ais/log_likelihood": -700.0}, "worse"),
        ("Likelihood", {"ais/log_likelihood": -700.0, "ais/reliable": 0.0}, "not compared"),
        ("Samples", {"samples/fid_net": 12.0}, "better"),
    ],
)
def test_verdicts_compare_the_model_with_the_baseline(topic, changes, expected):
    assert word(compare(**changes), topic) == expected


def test_what_cannot_be_trusted_is_stated():
    bad = METRICS | {"samples/fid_net": 30.0, "ais/reliable": 0.0, AUROC: 0.2}
    comparison = Comparison({"JEM": bad, "classifier": bad})
    found = {v.topic: v for v in verdicts(comparison, {"JEM": "Raise 'temperatures'."})}
    for topic in ("Out-of-distribution detection", "Likelihood", "Samples"):
        assert found[topic].word == "not to be trusted"
    assert "Below chance on noise (0.200 ± 0.020 against 0.200 ± 0.020)" in found["Out-of-distribution detection"].text
    assert "log Z of JEM is not reliable: Raise 'temperatures'." in found["Likelihood"].text
    assert "not better than the points where its chains start" in found["Samples"].text


def test_some_sets_may_be_better_and_others_worse():
    flipped = "ood/flipped/log_density/auroc"
    own = METRICS | {flipped: 0.7, f"{flipped}_std_err": 0.01}
    other = own | {AUROC: 0.8, flipped: 0.9}
    assert word(Comparison({"JEM": own, "classifier": other}), "Out-of") == "mixed"


def test_a_model_without_a_baseline_is_judged_alone():
    found = verdicts(Comparison({"JEM": METRICS}))
    assert {v.word for v in found} == {"not compared"}
    assert "400 test images, with 95 % intervals: JEM 90.00 % (86.67 to 92.57)." in found[0].text


def test_the_text_table_is_grouped_and_has_directions():
    metrics = METRICS | {f"baseline/{key}": value for key, value in (METRICS | {"test/accuracy": 0.8}).items()}
    lines = comparison_table(metrics, names=("JEM", "classifier")).splitlines()
    assert max(map(len, lines)) <= 100
    (accuracy,) = [line for line in lines if line.startswith("  accuracy")]
    assert accuracy.split() == ["accuracy", "↑", "0.9000*", "0.8000"]
    assert sum(line.split()[:2] == ["noise", "↑"] for line in lines) == 1, "no duplicates"
    heads = [line for line in lines if line and not line.startswith(" ") and ":" not in line]
    assert [head.split(",")[0] for head in heads][:4] == [
        "Accuracy and calibration",
        "Likelihood at temperature 1",
        "Out-of-distribution detection",
        "Samples of new chains",
    ]


def test_three_models_can_be_compared():
    results = {"a": METRICS, "b": METRICS | {"test/accuracy": 0.5}, "c": METRICS | {"test/accuracy": 0.6}}
    assert Comparison(results).winner("test/accuracy", "higher") == "a"
    results["c"] = METRICS
    assert Comparison(results).winner("test/accuracy", "higher") is None
