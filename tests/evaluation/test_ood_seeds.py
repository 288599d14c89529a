"""Means of several comparisons of detectors."""

import pytest

from ebm_lightning.evaluation.ood_seeds import (
    detectors_and_sets,
    findings,
    markdown_table,
    mean_and_error,
    ood_section,
    table_of,
)

METRICS = ("auroc", "fpr95", "aupr_in", "aupr_out")


def run_of(**auroc: tuple[float, float]) -> dict[str, float]:
    """One run on two sets, in which all metrics are equal."""
    return {
        f"{name}/{of}/{metric}": value
        for name, values in auroc.items()
        for of, value in zip(("near", "far"), values, strict=True)
        for metric in METRICS
    } | {"seconds": 1.0}


RUNS = [run_of(ours=(0.9, 0.6), KNN=(0.8, 0.7)), run_of(ours=(0.7, 0.8), KNN=(0.7, 0.7))]


def test_the_error_is_that_of_the_mean_over_runs():
    """Two values .9 and .7: their standard deviation is .1414, that of the mean .1."""
    assert mean_and_error(RUNS, "ours/near/auroc") == "0.8000 ± 0.1000"
    assert mean_and_error(RUNS[:1], "ours/near/auroc") == "0.9000"


def test_each_detector_has_a_row_with_its_mean_over_all_sets():
    assert detectors_and_sets(RUNS) == (["ours", "KNN"], ["near", "far"])
    lines = markdown_table(RUNS).splitlines()
    assert lines[0] == "| auroc | near | far | mean |"
    assert lines[2] == "| ours | 0.8000 ± 0.1000 | 0.7000 ± 0.1000 | 0.7500 |"


@pytest.mark.parametrize(("table", "best"), [(0, "ours"), (1, "KNN")])
def test_the_best_of_each_column_is_marked(table, best):
    """Near has .8 and .75, far .7 twice. A large AUROC is good, and a small FPR95."""
    (_, ours), (_, knn) = ood_section(RUNS).tables[table].rows
    assert [cell.best for cell in ours] == [best == "ours", True, best == "ours"]
    assert [cell.best for cell in knn] == [best == "KNN", True, best == "KNN"]


def test_every_cell_is_below_its_column():
    tables = [*ood_section(RUNS).tables, table_of(RUNS, "seconds", ["value"], {"time": ["seconds"]})]
    assert all(len(cells) == len(table.columns) for table in tables for _, cells in table.rows)
    assert tables[0].columns == ["near", "far", "mean"]


def test_findings_name_the_best_rival_and_the_sets_on_which_it_is_better():
    runs = [run_of(ours=(0.9, 0.6), KNN=(0.8, 0.7), other=(0.5, 0.5))]
    assert findings(runs, "ours", ["KNN", "other"]) == [
        "Mean AUROC over 2 sets: ours 0.7500, KNN 0.7500.",
        "KNN has a higher AUROC on far.",
    ]
