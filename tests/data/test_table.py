import pytest
import torch

from ebm_lightning.data import Table, Waves


@pytest.mark.parametrize(
    ("data", "rows"), [(Table("cancer"), 569), (Table("wine"), 178), (Table("iris"), 150), (Waves(), 1500)]
)
def test_rows_are_split_and_standardized_by_the_training_rows(data, rows):
    data.setup()
    x, y = data.train.tensors
    assert len(data.train) + len(data.val) + len(data.test) == rows
    assert x.shape[1:] == data.support.shape
    assert int(y.max()) + 1 == data.num_classes
    assert torch.allclose(x.mean(0), torch.zeros(()), atol=1e-5)
    assert torch.allclose(x.std(0), torch.ones(()), atol=1e-5)
    data.support.check(data.test.tensors[0])


def test_unknown_tables_are_named():
    with pytest.raises(ValueError, match="'table' should be one of cancer, wine, iris, got 'boston'"):
        Table("boston")


def test_waves_are_the_same_for_a_seed_and_differ_between_seeds():
    first, again, other = (Waves(split_seed=seed).read()[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
