"""Every ```python block of the README and of the docs runs: page by page, in order, in one namespace and a new folder.

Training is shortened to two batches, so this shows that the code works, not what it reaches. A page says in comments
what readers do not see: ``<!-- skip: reason -->`` above a block that needs the internet or minutes, and ``<!-- run``
followed by lines of code that the next blocks need.
"""

import re
import warnings
from pathlib import Path

import lightning as L
import pytest

ROOT = Path(__file__).parent.parent
GENERATED = {"_build", "auto_gallery"}
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if not GENERATED & set(p.parts))]
BLOCK = re.compile(
    r"<!-- run\n(?P<hidden>.*?)-->|(?:<!-- skip: (?P<reason>[^>]+?) -->\s*)?^```python\n(?P<shown>.*?)^```$",
    re.S | re.M,
)
SHORT = {"max_epochs": 1, "devices": 1, "strategy": "auto", "accelerator": "cpu", "enable_progress_bar": False}
SHORT |= {f"limit_{stage}_batches": 2 for stage in ("train", "val", "test", "predict")}


def blocks(page: Path) -> list[tuple[int, str]]:
    """First line and code of each block that runs."""
    text, found = page.read_text(), []
    for match in BLOCK.finditer(text):
        code = match["hidden"] or match["shown"]
        if not match["reason"]:
            found.append((text.count("\n", 0, match.start("hidden" if match["hidden"] else "shown")), code))
    return found


@pytest.fixture
def short_runs(monkeypatch, tmp_path):
    """Trainers stop after two batches, on one CPU; files go to a temporary folder."""
    start = L.Trainer.__init__
    monkeypatch.setattr(L.Trainer, "__init__", lambda self, *args, **kwargs: start(self, *args, **kwargs | SHORT))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_the_code_of_a_page_runs(page, short_runs, seed):
    namespace = {"__name__": "page"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for line, code in blocks(page):
            exec(compile("\n" * line + code, str(page), "exec"), namespace)


def test_blocks_are_found_run_and_skipped(tmp_path):
    """Kills: a runner that finds no block, or runs skipped ones."""
    page = tmp_path / "page.md"
    page.write_text("# A\n\n<!-- run\nx = 1\n-->\n```python\ny = x\n```\n\n<!-- skip: no -->\n```python\n1 / 0\n```\n")
    assert blocks(page) == [(3, "x = 1\n"), (6, "y = x\n")]
    assert len(PAGES) > 20
