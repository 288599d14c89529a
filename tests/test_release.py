"""What has to agree before a release."""

import re
import runpy
from pathlib import Path

import pytest

import ebm_lightning

ROOT = Path(__file__).parent.parent


def test_the_citation_names_the_version():
    assert f"\nversion: {ebm_lightning.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_changelog_starts_with_the_version():
    first = next(line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## "))
    assert first.startswith((f"## {ebm_lightning.__version__} - ", "## Unreleased"))


def test_links_of_the_readme_are_absolute_on_the_index():
    """Kills: pictures with the address of a page, targets that the repository lacks."""
    pytest.importorskip("setuptools")
    text = runpy.run_path(str(ROOT / "setup.py"))["long_description"]()
    targets = re.findall(r"(!?)\[[^]]*\]\(([^)]+)\)", text)
    assert len(targets) > 10
    for picture, target in targets:
        address, found = re.fullmatch(r"(https://github.com/\w+/\w+)/(?:raw|blob)/main/([^#]+).*", target).groups()
        assert f"{address}/{'raw' if picture else 'blob'}/" in target
        assert (ROOT / found).exists(), target
