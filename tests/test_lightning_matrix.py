"""Every feature of Lightning in the table of ``docs/lightning.md`` works, or is refused as the table says.

``python -m tests.test_lightning_matrix`` prints the table.
"""

import re
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.lightning_features import callbacks, life_cycle, modules_and_data, trainer_options  # noqa: F401 (register)
from tests.lightning_features.registry import FEATURES, Feature, table

PAGE = Path(__file__).parent.parent / "docs" / "lightning.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("feature", FEATURES, ids=lambda f: f.use.__name__)
def test_feature(feature: Feature, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = pytest.raises(RuntimeError, match=re.escape(feature.refused)) if feature.refused else nullcontext()
    with expected:
        feature.use(tmp_path)


def test_the_docs_have_the_table():
    assert table() in PAGE.read_text()


if __name__ == "__main__":
    print(table(), end="")
