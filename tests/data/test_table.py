import pytest
import torch

from ebm_lightning.data import Table
from tests.helpers import recipe


@pytest.mark.parametrize(("name", "rows"), [("cancer", 569), ("wine", 178), ("iris", 150)])
def test_rows_are_split_and_standardized_by_the_training_rows(name, rows):
    data = Table(name)
    data.setup()
    x, y = data.train.tensors
    assert len(data.train) + len(data.val) + len(data.test) == rows
    assert x.shape[1:] == data.support.shape
    assert int(y.max()) + 1 == data.num_classes
    assert torch.allclose(x.mean(0), torch.zeros(()), atol=1e-5)
    assert torch.allclose(x.std(0), torch.ones(()), atol=1e-5)
    data.support.check(data.test.tensors[0])


def test_the_split_is_that_of_the_recipe(monkeypatch, tmp_path):
    """The recipe draws it from the global random state of a seed."""
    tables = recipe("tables.py")
    seen = []
    monkeypatch.setattr(tables, "closed_forms", lambda *_: {})
    monkeypatch.setattr(tables, "joint", lambda train, labels, rows, y, *_: seen.append((train, rows)) or {"x": 0.0})
    tables.main(("wine",), seeds=2, output=tmp_path / "out")
    for seed, (train, test) in enumerate(seen):
        data = Table("wine", split_seed=seed)
        data.setup()
        assert torch.equal(data.train.tensors[0], train)
        assert torch.equal(data.test.tensors[0], test)


def test_unknown_tables_are_named():
    with pytest.raises(ValueError, match="'table' should be one of cancer, wine, iris, got 'boston'"):
        Table("boston")
