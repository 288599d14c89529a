import pytest
import torch

from ebm_lightning.chains import DataInit, SupportInit
from ebm_lightning.supports import Box

BOX = Box(-1, 1, (2,))


def test_data_init_starts_at_a_copy_of_the_data():
    data = torch.randn(5, 2)
    x, index = DataInit().draw(5, data=data)
    assert torch.equal(x, data)
    assert x.data_ptr() != data.data_ptr()
    assert index is None
    with pytest.raises(ValueError, match="'data' should hold 5 rows"):
        DataInit().draw(5)


def test_support_init_starts_in_the_support():
    chains = SupportInit()
    with pytest.raises(RuntimeError, match="no support yet"):
        chains.draw(5)
    chains.setup(BOX)
    x, index = chains.draw(5)
    assert BOX.contains(x).all()
    assert index is None
    assert not torch.equal(x, chains.draw(5)[0])


@pytest.mark.parametrize("chains", [SupportInit(), DataInit()])
def test_chains_without_slots_store_nothing(chains):
    chains.setup(BOX)
    chains.store(None, torch.zeros(5, 2))
    chains.reinitialize(None)
    assert chains.state_dict() == {}
    chains.load_sharded([{}, {}], 0, 2)
    chains.load_sharded([{}], 0, 3)
