"""The report: its tables, explanations and pictures, that it is self-contained, and its layout in a browser.

Mutants that these kill: text that is not escaped, a picture by its path, a picture without an alternative text, a table
that is wider than a phone, a page without colors for the dark, and a log Z that is not reliable without the reason.
"""

import base64
import json
import math
import re
from html.parser import HTMLParser

import pytest
import torch
from torchvision.utils import save_image

from ebm_lightning.evaluation.report import (
    Cell,
    Comparison,
    Picture,
    Section,
    Table,
    Verdict,
    evaluation_sections,
    page,
    remove_if_empty,
    results_folder,
    verdicts,
)
from ebm_lightning.evaluation.report.page import shown
from tests.evaluation.browser import layout
from tests.evaluation.test_verdict import METRICS

MORE = METRICS | {
    "ood/images": 77.0,
    "robust/images": 55.0,
    "refine/accuracy_5": 0.8,
    "refine/energy_change_5": -3.0,
    "refine/images": 55.0,
}
WHY = {"classifier": "The chains missed <b>: raise 'temperatures'."}


def test_large_numbers_have_fewer_decimals():
    values = [0.12345, 0.0000123, 0.0, -9.87654, 91.7232, 3326.92, 136974.6, math.inf, math.nan]
    expected = ["0.1235", "1.2e-05", "0.0000", "-9.8765", "91.72", "3327", "1.37e+05", "inf", "nan"]
    assert [shown(value) for value in values] == expected


def test_a_page_contains_its_pictures_and_requests_nothing(tmp_path):
    save_image(torch.rand(3, 4, 4), tmp_path / "a.png")
    table = Table("of & for", ["<b>"], [("row & row", [Cell("1.0000")])])
    picture = Picture(tmp_path / "a.png", "x", 'a "dark" square')
    text = page(
        "<title>",
        ["a < b"],
        [Section("One & two", "how <to> read", [table], [picture])],
        [Verdict("Accuracy", "worse", "0.1 < 0.2")],
    )
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert base64.b64decode(data) == (tmp_path / "a.png").read_bytes()
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    assert str(tmp_path) not in text
    for escaped in ("&lt;title&gt;", "a &lt; b", "One &amp; two", "how &lt;to&gt; read", "&lt;b&gt;", "row &amp; row",
                    "of &amp; for", "a &quot;dark&quot; square", "0.1 &lt; 0.2"):  # fmt: skip
        assert escaped in text
    assert text.index("0.1 &lt; 0.2") < text.index("a &lt; b"), "the verdict is on top"


@pytest.fixture
def folders(tmp_path):
    made = {name: tmp_path / name for name in ("JEM", "classifier")}
    for folder in made.values():
        folder.mkdir()
        for name in ("test-reliability", "robust-curves", "ais-path"):
            save_image(torch.rand(3, 400, 600), folder / f"{name}.png")
    return made


@pytest.fixture
def report(folders, tmp_path):
    """The path of a page that compares two models."""
    comparison = Comparison({"JEM": MORE, "classifier": MORE | {"test/accuracy": 0.8}})
    sections = evaluation_sections(comparison, folders, 7, why=WHY)
    path = tmp_path / "report.html"
    path.write_text(page("A title " + 200 * "x", ["a/long/path" * 20], sections, verdicts(comparison, WHY)))
    return path


def test_sections_compare_the_models_and_explain_their_numbers(folders):
    comparison = Comparison({"JEM": MORE, "classifier": MORE | {"test/accuracy": 0.8}})
    sections = {s.heading: s for s in evaluation_sections(comparison, folders, 7)}
    assert list(sections) == [
        "Classifier",
        "Out-of-distribution detection",
        "Likelihood",
        "Samples",
        "Robustness",
        "Refinement",
    ]
    assert all(re.search("higher|lower", s.reading) and "better" in s.reading for s in sections.values())
    table = sections["Classifier"].tables[0]
    assert table.columns == ["JEM", "classifier"]
    assert dict(table.rows)["accuracy"] == [Cell("0.9000 ± 0.0295", True), Cell("0.8000 ± 0.0391")]
    assert "7 equal bins" in sections["Classifier"].reading
    assert "77 test images" in sections["Out-of-distribution detection"].reading
    (fid, *_) = sections["Samples"].tables[0].rows
    assert [cell.text for cell in fid[1]] == ["9.0000 ± 0.9800", "9.0000 ± 0.9800", "20.00", "1.0000"]


def test_sections_without_measurements_are_left_out(folders):
    few = {k: v for k, v in METRICS.items() if k.startswith("test/")}
    sections = evaluation_sections(Comparison({"JEM": few}), {"JEM": folders["JEM"].parent}, 15)
    assert [s.heading for s in sections] == ["Classifier"]


def test_the_page_says_why_a_log_z_is_not_reliable(report):
    assert "Log Z of classifier is not reliable. The chains missed &lt;b&gt;: raise &#x27;temp" in report.read_text()
    assert "Log Z of JEM" not in report.read_text()


class Elements(HTMLParser):
    """The attributes of all elements, by tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, list[dict[str, str | None]]] = {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.setdefault(tag, []).append(dict(attributes))


def test_tables_and_pictures_can_be_read_aloud(report):
    found = Elements(report.read_text()).found
    assert all(cell["scope"] in ("row", "col") for cell in found["th"])
    assert len(found["caption"]) == len(found["table"])
    assert all(len(image["alt"]) > 60 for image in found["img"])
    assert len({image["alt"] for image in found["img"]}) == len(found["img"])


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_is_not_wider_than_the_window(report, tmp_path, width, dark):
    """Tables scroll in their boxes."""
    seen = json.loads(layout(report, width, tmp_path, dark=dark))
    assert seen["width"] == seen["content"] == width
    red, green, blue = (int(part) for part in re.findall(r"\d+", seen["background"])[:3])
    assert (red + green + blue < 150) is dark


def test_results_go_to_the_next_free_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [results_folder(None, "eval").name for _ in range(2)] == ["eval-0", "eval-1"]
    assert results_folder("runs/eval-0", "eval").is_dir()
    (tmp_path / "runs" / "eval-0" / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match="'output' should be a new or empty folder, got runs/eval-0, which has files"):
        results_folder("runs/eval-0", "eval")


def test_a_folder_without_files_is_removed_and_one_with_files_is_kept(tmp_path):
    folders = [results_folder(tmp_path / name / "eval", "eval") for name in ("a", "b")]
    (folders[0] / "model" / "logs").mkdir(parents=True)
    (folders[1] / "metrics.json").write_text("{}")
    for folder in (*folders, tmp_path / "missing"):
        remove_if_empty(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
