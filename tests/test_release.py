"""What has to agree before a release."""

from pathlib import Path

import ebm_lightning

ROOT = Path(__file__).parent.parent


def test_the_citation_names_the_version():
    assert f"\nversion: {ebm_lightning.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_changelog_starts_with_the_version():
    first = next(line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## "))
    assert first.startswith((f"## {ebm_lightning.__version__} - ", "## Unreleased"))
