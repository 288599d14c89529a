import math
import re

import pytest
import torch

from ebm_lightning.chains import DataInit, ReplayBuffer, SupportInit
from ebm_lightning.streams import make_generator
from ebm_lightning.supports import Box, Euclidean

BOX = Box(-1, 1, (2,))


def buffer(size: int = 100, reinit_prob: float = 0.0, num_classes: int | None = None, seed: int = 0) -> ReplayBuffer:
    chains = ReplayBuffer(size, reinit_prob)
    chains.setup(BOX, num_classes, make_generator(seed, "fill"))
    return chains


def test_slots_are_drawn_without_replacement_and_evenly(seed):
    chains, generator = buffer(20), make_generator(seed)
    counts = torch.zeros(20)
    for _ in range(4000):
        _, index = chains.draw(10, generator=generator)
        assert len(index.unique()) == 10
        counts[index] += 1
    assert ((counts - 2000).abs() < 5 * math.sqrt(4000 * 0.25)).all()


def test_every_chain_survives_frozen_dynamics():
    """A buffer that wrote anywhere but to the slots it drew would lose chains (one rival keeps 18 of 1000)."""
    chains, generator = buffer(100), make_generator(0)
    before = chains.x.clone()
    for _ in range(200):
        x, index = chains.draw(30, generator=generator)
        chains.store(index, x)
    assert torch.equal(chains.x, before)
    assert chains.age.sum() == 200 * 30


def test_chains_go_on_where_they_ended():
    chains, generator = buffer(10), make_generator(0)
    _, index = chains.draw(4, generator=generator)
    chains.store(index, torch.arange(8.0).view(4, 2))
    x, again = chains.draw(10, generator=generator)
    for slot, row in zip(index, torch.arange(8.0).view(4, 2), strict=True):
        assert torch.equal(x[again == slot][0], row)


def test_drawing_alone_moves_no_chain():
    chains = buffer(10, 1.0)
    before = chains.x.clone()
    x, _ = chains.draw(5)
    x.fill_(9.0)
    assert torch.equal(chains.x, before)


def test_restarts_have_their_probability_and_come_from_the_support(seed):
    chains, generator = buffer(1000, 0.3), make_generator(seed)
    chains.x.fill_(7.0)  # nowhere the support would start
    x, index = chains.draw(1000, generator=generator)
    fresh = (x != 7).all(1)
    assert abs(int(fresh.sum()) - 300) < 5 * math.sqrt(1000 * 0.3 * 0.7)
    assert BOX.contains(x[fresh]).all()
    chains.store(index, x)
    assert torch.equal(chains.x[index], x), "restarted chains are kept too"


def test_age_counts_since_the_last_restart():
    chains = buffer(4)
    for _ in range(3):
        x, index = chains.draw(4)
        chains.store(index, x)
    assert chains.age.tolist() == [3] * 4
    chains.reinit_prob = 1.0
    x, index = chains.draw(4)
    chains.store(index, x)
    assert chains.age.tolist() == [1] * 4


def test_chains_keep_their_label_for_life(seed):
    chains, generator = buffer(40, num_classes=4), make_generator(seed)
    for _ in range(50):
        labels = torch.randint(4, (10,), generator=generator)
        _, index = chains.draw(10, labels, generator)
        assert torch.equal(index % 4, labels)
        assert len(index.unique()) == 10
    labels = torch.full((10,), 2)
    assert sorted(chains.draw(10, labels, generator)[1].tolist()) == list(range(2, 40, 4))


def test_equal_generators_draw_equal_chains():
    draws = [buffer(seed=3).draw(10, generator=make_generator(5))[0] for _ in range(2)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], buffer(seed=4).draw(10, generator=make_generator(5))[0])


def test_state_comes_back():
    old, new = buffer(seed=1), buffer(seed=2)
    x, index = old.draw(10)
    old.store(index, x)
    new.load_state_dict(old.state_dict())
    assert torch.equal(old.x, new.x)
    assert torch.equal(old.age, new.age)
    with pytest.raises(ValueError, match=re.escape("'state' should hold chains of shape (50, 2), got (100, 2)")):
        buffer(50).load_state_dict(old.state_dict())


def test_data_init_starts_at_the_data():
    data = torch.randn(5, 2)
    x, index = DataInit().draw(5, data=data)
    assert torch.equal(x, data)
    assert x.data_ptr() != data.data_ptr()
    assert index is None
    with pytest.raises(ValueError, match="'data' should hold 5 rows"):
        DataInit().draw(5)


def test_support_init_starts_anew():
    chains = SupportInit()
    with pytest.raises(RuntimeError, match="no support yet"):
        chains.draw(5)
    chains.setup(BOX)
    x, index = chains.draw(5)
    assert BOX.contains(x).all()
    assert index is None


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: ReplayBuffer(0), "'size' should be at least 1, got 0"),
        (lambda: ReplayBuffer(10, 1.5), "'reinit_prob' should be in [0, 1], got 1.5"),
        (lambda: buffer(10).draw(11), "'size' should be at least the batch size 11, got a buffer of 10"),
        (lambda: buffer(10, num_classes=4), "'size' should be a multiple of the 4 classes"),
        (lambda: buffer(40, num_classes=4).draw(11, torch.zeros(11).long()), "'size' should give each class as many"),
        (lambda: buffer(40, num_classes=4).draw(3), "'labels' should be given"),
        (lambda: buffer(40).draw(3, torch.zeros(3).long()), "'labels' should be None"),
        (lambda: buffer().store(None, torch.zeros(1, 2)), "'index' should be the slots"),
        (lambda: ReplayBuffer(10).setup(Euclidean((2,))), "'support' should have finite mass"),
    ],
)
def test_bad_arguments(action, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        action()


def test_use_before_setup():
    with pytest.raises(RuntimeError, match="no chains yet"):
        ReplayBuffer(10).draw(3)


def shares(ranks: int, size: int, num_classes: int | None = None) -> list[dict]:
    """Saved chains whose x and age both say which chain it is."""
    number = torch.arange(ranks * size).view(ranks, size)
    if num_classes:
        number = number * num_classes + torch.arange(size) % num_classes  # the class is the remainder
    return [{"x": n[:, None].float(), "age": n.clone()} for n in number]


@pytest.mark.parametrize("num_classes", [None, 3])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 2), (2, 4), (1, 2), (4, 3), (1, 1)])
def test_each_chain_is_dealt_to_one_rank_with_its_age_and_class(before, after, num_classes):
    """Kills: rank 0's share for all, ages left behind, chains dealt one by one whatever their class."""
    saved = shares(before, 21, num_classes)
    dealt = []
    for rank in range(after):
        buffer = ReplayBuffer(21)
        buffer.setup(Box(-1e6, -1, (1,)), num_classes)
        buffer.deal(saved, rank, after)
        old = buffer.x[:, 0] >= 0
        assert buffer.size == len(buffer.x) == len(buffer.age) == max(21, int(old.sum()))
        assert torch.equal(buffer.age[old], buffer.x[old, 0].long())
        assert (buffer.age[~old] == 0).all(), "free slots hold fresh chains"
        if num_classes:
            assert torch.equal(buffer.x[old, 0].long() % 3, torch.arange(buffer.size)[old] % 3)
            assert torch.equal(buffer.draw(3, torch.tensor([0, 1, 2]))[1] % 3, torch.arange(3))
        dealt.append(buffer.x[old, 0])
    assert torch.equal(torch.cat(dealt).sort().values, torch.cat([s["x"][:, 0] for s in saved]).sort().values)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= (num_classes or 1), "shares are even"


def test_as_many_ranks_take_back_their_own():
    saved = shares(2, 21)
    for rank in range(2):
        buffer = ReplayBuffer(21)
        buffer.setup(Box(-1, 1, (1,)))
        buffer.deal(saved, rank, 2)
        assert torch.equal(buffer.x, saved[rank]["x"])


def test_chains_of_another_support_are_refused():
    buffer = ReplayBuffer(21)
    buffer.setup(Box(-1, 1, (2,)))
    with pytest.raises(ValueError, match=r"'chains' should go on with chains of shape \(2,\)"):
        buffer.deal(shares(1, 21), 0, 1)
    buffer = ReplayBuffer(20)
    buffer.setup(Box(-1, 1, (1,)), 5)
    with pytest.raises(ValueError, match="in multiples of 5"):
        buffer.deal(shares(1, 21), 0, 1)


def test_chains_that_are_not_kept_have_nothing_to_deal():
    SupportInit().deal([{}, {}], 0, 2)
    DataInit().deal([{}], 0, 1)
