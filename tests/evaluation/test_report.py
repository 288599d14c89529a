"""The report: which values are marked as best, its explanations, and that it is self-contained.

Mutants that these kill: min for max, NaN marked as best, a mark on a single model, text that is not escaped, a picture
by its path, unreliable likelihoods that are ranked, and a log Z that is not reliable without the reason.
"""

import base64
import math
import re

import pytest
import torch
from torchvision.utils import save_image

from ebm_lightning.evaluation.report import (
    Cell,
    Picture,
    Section,
    Table,
    compare,
    comparison_table,
    evaluation_sections,
    page,
    results_folder,
)

METRICS = {
    "test/accuracy": 0.9,
    "test/nll": 0.3,
    "test/ece": 0.02,
    "ood/SVHN/log_density/auroc": 0.8,
    "ood/SVHN/log_density/fpr95": 0.5,
    "ood/SVHN/auroc": 0.8,
    "ood/noise/log_density/auroc": 0.7,
    "ood/noise/log_density/fpr95": 0.6,
    "ood/images": 77.0,
    "robust/clean": 0.9,
    "robust/linf_0.1": 0.4,
    "robust/images": 55.0,
    "samples/fid_classifier": 9.0,
    "samples/fid_classifier_floor": 1.0,
    "samples/fid_classifier_start": 20.0,
    "refine/accuracy_5": 0.8,
    "refine/energy_change_5": -3.0,
    "ais/bits_per_dim": 1.5,
    "ais/log_likelihood": -800.0,
    "ais/reliable": 1.0,
}


def texts(cells: list[Cell]) -> list[str]:
    return [cell.text for cell in cells]


def test_the_best_of_several_is_marked():
    assert compare([0.1, 0.3, 0.3], "higher") == [Cell("0.1000"), Cell("0.3000", True), Cell("0.3000", True)]
    assert [c.best for c in compare([0.1, math.nan, None, 0.3], "lower")] == [True, False, False, False]
    assert not any(c.best for c in compare([0.1, 0.3], "neither"))
    assert compare([0.99991, 0.99998, 0.9], "higher", 3) == [Cell("1.000", True), Cell("1.000", True), Cell("0.900")]
    assert not compare([0.1, None], "higher")[0].best, "nothing to compare it with"


def test_large_numbers_have_fewer_decimals():
    shown = texts(compare([0.12345, 0.0000123, 0.0, -9.87654, 91.7232, 3326.92, 136974.6, math.inf, math.nan, None]))
    assert shown == ["0.1235", "1.2e-05", "0.0000", "-9.8765", "91.72", "3327", "1.37e+05", "inf", "nan", "-"]


def test_a_page_contains_its_pictures_and_requests_nothing(tmp_path):
    save_image(torch.rand(3, 4, 4), tmp_path / "a.png")
    table = Table(["", "<b>"], [("row & row", compare([1.0]))])
    text = page(
        "<title>", ["a < b"], [Section("One & two", "how <to> read", [table], [Picture(tmp_path / "a.png", "x")])]
    )
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert base64.b64decode(data) == (tmp_path / "a.png").read_bytes()
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    assert str(tmp_path) not in text
    for escaped in ("&lt;title&gt;", "a &lt; b", "One &amp; two", "how &lt;to&gt; read", "&lt;b&gt;", "row &amp; row"):
        assert escaped in text


@pytest.fixture
def folders(tmp_path):
    made = {name: tmp_path / name for name in ("model", "baseline")}
    for folder in made.values():
        folder.mkdir()
        for name in ("ood-SVHN", "ood-noise", "robust-curves"):
            save_image(torch.rand(3, 4, 4), folder / f"{name}.png")
    return made


def test_sections_compare_the_models_and_explain_their_numbers(folders):
    sections = evaluation_sections({"model": METRICS, "baseline": METRICS | {"test/accuracy": 0.8}}, folders, bins=7)
    headings = [s.heading for s in sections]
    assert headings == [
        "Classifier",
        "Out-of-distribution detection",
        "Likelihood",
        "Samples",
        "Robustness",
        "Refinement",
    ]
    assert all(re.search("higher|lower", s.reading) and "better" in s.reading for s in sections)
    accuracy = dict(sections[0].tables[0].rows)["accuracy"]
    assert accuracy == [Cell("0.9000", True), Cell("0.8000")]
    assert "7 equal bins" in sections[0].reading
    assert "77 test images" in sections[1].reading
    assert [p.caption for p in sections[1].pictures] == [
        "model: ood SVHN",
        "baseline: ood SVHN",
        "model: ood noise",
        "baseline: ood noise",
    ]
    assert [len(cells) for _, cells in sections[1].tables[0].rows] == [4, 4]
    assert texts(sections[3].tables[0].rows[0][1]) == ["9.0000", "9.0000", "20.00", "1.0000"], (
        "also for initial points and real images"
    )


def test_sections_without_measurements_are_left_out(folders):
    few = {k: v for k, v in METRICS.items() if k.startswith("test/")}
    sections = evaluation_sections({"model": few}, {"model": folders["model"].parent}, bins=15)
    assert [s.heading for s in sections] == ["Classifier"]


@pytest.mark.parametrize("reliable", [0.0, 1.0])
def test_unreliable_likelihoods_are_not_ranked(folders, reliable):
    other = METRICS | {"ais/bits_per_dim": 1.0, "ais/log_likelihood": -700.0, "ais/reliable": reliable}
    sections = evaluation_sections({"model": METRICS, "baseline": other}, folders, bins=15)
    rows = dict(sections[2].tables[0].rows)
    for name in ("bits per dimension", "log-likelihood, nats per image"):
        assert [cell.best for cell in rows[name]] == [False, bool(reliable)]


def test_the_page_says_why_a_log_z_is_not_reliable(folders):
    why = {"baseline": "The chains missed <b>: raise 'temperatures'."}
    likelihood = evaluation_sections({"model": METRICS, "baseline": METRICS}, folders, 15, why)[2]
    assert likelihood.reading.endswith(f"Log Z of 'baseline' is not reliable. {why['baseline']}")
    assert "Log Z of 'model'" not in likelihood.reading
    assert "missed &lt;b&gt;: raise &#x27;temperatures&#x27;." in page("title", [], [likelihood])


def test_a_text_table_compares_the_models():
    lines = comparison_table({"a": 1.0, "seconds": 2.5, "baseline/a": 3.0}).splitlines()
    assert [line.split() for line in lines] == [
        ["model", "baseline"],
        ["a", "1.0000", "3.0000"],
        ["seconds", "2.5000", "-"],
    ]
    assert comparison_table({"a": 1.0}).splitlines()[0].split() == ["model"]


def test_results_go_to_the_next_free_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [results_folder(None, "eval").name for _ in range(2)] == ["eval-0", "eval-1"]
    assert results_folder("runs/eval-0", "eval").is_dir()
    (tmp_path / "runs" / "eval-0" / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match="'output' should be a new or empty folder, got runs/eval-0, which has files"):
        results_folder("runs/eval-0", "eval")
