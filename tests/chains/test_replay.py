"""The replay buffer: slots, labels, reinitialization, initial distributions, and saved states."""

import math
import re

import pytest
import torch

from ebm_lightning import ClassGaussians, ReplayBuffer
from ebm_lightning.partition import Normal
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Binary, Box, Density, Euclidean, Gaussian, Support
from tests.conftest import z_score

BOX = Box(-1, 1, (2,))


def buffer(size: int = 100, reinit_prob: float = 0.0, num_classes: int | None = None, seed: int = 0) -> ReplayBuffer:
    chains = ReplayBuffer(size, reinit_prob)
    chains.setup(BOX, num_classes, make_generator(seed, "fill"))
    return chains


def test_slots_are_drawn_uniformly_without_replacement(seed):
    chains, generator = buffer(20), make_generator(seed)
    counts = torch.zeros(20)
    for _ in range(4000):
        _, index = chains.draw(10, generator=generator)
        assert len(index.unique()) == 10
        counts[index] += 1
    assert ((counts - 2000).abs() < 5 * math.sqrt(4000 * 0.25)).all()


def test_no_chain_is_lost_if_chains_do_not_move():
    """Kills: storing in slots other than the drawn ones."""
    chains, generator = buffer(100), make_generator(0)
    before = chains.x.clone()
    for _ in range(200):
        x, index = chains.draw(30, generator=generator)
        chains.store(index, x)
    assert torch.equal(chains.x, before)
    assert chains.age.sum() == 200 * 30


def test_chains_continue_from_their_final_points():
    chains, generator = buffer(10), make_generator(0)
    _, index = chains.draw(4, generator=generator)
    chains.store(index, torch.arange(8.0).view(4, 2))
    x, again = chains.draw(10, generator=generator)
    for slot, row in zip(index, torch.arange(8.0).view(4, 2), strict=True):
        assert torch.equal(x[again == slot][0], row)


def test_drawing_does_not_change_chains():
    chains = buffer(10, 1.0)
    before = chains.x.clone()
    x, _ = chains.draw(5)
    x.fill_(9.0)
    assert torch.equal(chains.x, before)


def test_chains_are_reinitialized_from_the_support_with_their_probability(seed):
    chains, generator = buffer(1000, 0.3), make_generator(seed)
    chains.x.fill_(7.0)  # outside of the support
    x, index = chains.draw(1000, generator=generator)
    fresh = (x != 7).all(1)
    assert abs(int(fresh.sum()) - 300) < 5 * math.sqrt(1000 * 0.3 * 0.7)
    assert BOX.contains(x[fresh]).all()
    chains.store(index, x)
    assert torch.equal(chains.x[index], x), "reinitialized chains are stored too"


def test_age_counts_since_the_last_reinitialization():
    chains = buffer(4)
    for _ in range(3):
        x, index = chains.draw(4)
        chains.store(index, x)
    assert chains.age.tolist() == [3] * 4
    chains.reinit_prob = 1.0
    x, index = chains.draw(4)
    chains.store(index, x)
    assert chains.age.tolist() == [1] * 4


def test_chains_keep_their_label(seed):
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


def test_state_is_restored():
    old, new = buffer(seed=1), buffer(seed=2)
    x, index = old.draw(10)
    old.store(index, x)
    new.load_state_dict(old.state_dict())
    assert torch.equal(old.x, new.x)
    assert torch.equal(old.age, new.age)
    with pytest.raises(ValueError, match=re.escape("'state' should hold chains of shape (50, 2), got (100, 2)")):
        buffer(50).load_state_dict(old.state_dict())


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: ReplayBuffer(0), "'size' should be at least 1, got 0"),
        (lambda: ReplayBuffer(10, 1.5), "'reinit_prob' should be in [0, 1], got 1.5"),
        (lambda: buffer(10).draw(11), "'size' should be at least the batch size 11, got a buffer of 10"),
        (lambda: buffer(10, num_classes=4), "'size' should be a multiple of the 4 classes"),
        (lambda: buffer(40, num_classes=4).draw(3), "'labels' should be given"),
        (lambda: buffer(40).draw(3, torch.zeros(3).long()), "'labels' should be None"),
        (lambda: buffer().store(None, torch.zeros(1, 2)), "'index' should be the slots"),
        (lambda: ReplayBuffer(10).setup(Euclidean((2,))), "'support' should have finite mass"),
        (lambda: ReplayBuffer(10, initial=BOX).setup(Binary((2,))), "'initial' should be None on Binary"),
    ],
)
def test_bad_arguments(action, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        action()


def test_use_before_setup():
    with pytest.raises(RuntimeError, match="no chains yet"):
        ReplayBuffer(10).draw(3)


def saved_states(ranks: int, size: int, num_classes: int | None = None) -> list[dict]:
    """Saved chains with the number of the chain as x and as age."""
    number = torch.arange(ranks * size).view(ranks, size)
    if num_classes:
        number = number * num_classes + torch.arange(size) % num_classes  # the class is the remainder
    return [{"x": n[:, None].float(), "age": n.clone()} for n in number]


@pytest.mark.parametrize("num_classes", [None, 3])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 2), (2, 4), (1, 2), (4, 3), (1, 1)])
def test_each_chain_is_restored_on_one_rank_with_its_age_and_class(before, after, num_classes):
    """Kills: rank 0's part on all ranks, ages that are not restored, chains distributed without their class."""
    saved = saved_states(before, 21, num_classes)
    restored = []
    for rank in range(after):
        buffer = ReplayBuffer(21)
        buffer.setup(Box(-1e6, -1, (1,)), num_classes)
        buffer.load_sharded(saved, rank, after)
        old = buffer.x[:, 0] >= 0
        assert buffer.size == len(buffer.x) == len(buffer.age) == max(21, int(old.sum()))
        assert torch.equal(buffer.age[old], buffer.x[old, 0].long())
        assert (buffer.age[~old] == 0).all(), "the remaining slots hold new chains"
        if num_classes:
            assert torch.equal(buffer.x[old, 0].long() % 3, torch.arange(buffer.size)[old] % 3)
            assert torch.equal(buffer.draw(3, torch.tensor([0, 1, 2]))[1] % 3, torch.arange(3))
        restored.append(buffer.x[old, 0])
    assert torch.equal(torch.cat(restored).sort().values, torch.cat([s["x"][:, 0] for s in saved]).sort().values)
    assert max(map(len, restored)) - min(map(len, restored)) <= (num_classes or 1), "evenly"


def test_the_same_number_of_ranks_restores_the_same_chains():
    saved = saved_states(2, 21)
    for rank in range(2):
        buffer = ReplayBuffer(21)
        buffer.setup(Box(-1, 1, (1,)))
        buffer.load_sharded(saved, rank, 2)
        assert torch.equal(buffer.x, saved[rank]["x"])


def test_chains_of_another_support_raise():
    buffer = ReplayBuffer(21)
    buffer.setup(Box(-1, 1, (2,)))
    with pytest.raises(ValueError, match=r"'chains' should have shape \(2,\)"):
        buffer.load_sharded(saved_states(1, 21), 0, 1)
    buffer = ReplayBuffer(20)
    buffer.setup(Box(-1, 1, (1,)), 5)
    with pytest.raises(ValueError, match="in multiples of 5"):
        buffer.load_sharded(saved_states(1, 21), 0, 1)


# Initial distributions: any density, supports included.


class AtLabel(Density):
    """Each point is at its label, or at 7, outside of the box, without one."""

    def sample(self, n, *, labels=None, generator=None, device=None):
        return torch.full((n, 2), 7.0) if labels is None else labels[:, None].float().expand(n, 2).clone()

    def log_prob(self, x):
        raise NotImplementedError


def class_gaussians() -> ClassGaussians:
    initial, generator = ClassGaussians(), make_generator(0, "data")
    initial.fit([(0.5 * torch.randn(60, 2, generator=generator) + 1, torch.arange(60) % 3)], 3)
    return initial


NORMAL = Normal(torch.tensor([0.5, -0.5]), torch.tensor([0.7, 1.5]))
INITIAL = {
    "box": Box(-0.5, 3, (2,)),
    "gaussian": Gaussian(0.3, 2.0, (2,)),
    "euclidean with reference": Euclidean((2,), NORMAL),
    "box with reference": Box(-1, 1, (2,), Normal(NORMAL.mean, NORMAL.std, BOX)),
    "normal": NORMAL,
    "truncated normal": Normal(NORMAL.mean, NORMAL.std, BOX),
    "class gaussians": class_gaussians(),
    "custom": AtLabel(),
}
SUPPORTS = {"box": BOX, "gaussian": Gaussian(0.0, 1.0, (2,)), "euclidean": Euclidean((2,))}


@pytest.mark.parametrize("support", SUPPORTS.values(), ids=SUPPORTS)
@pytest.mark.parametrize("initial", INITIAL.values(), ids=INITIAL)
@pytest.mark.parametrize("num_classes", [None, 3])
def test_any_density_initializes_and_reinitializes_chains(initial, support: Support, num_classes, seed):
    """Kills: points of the support's reference density, no clamp, a reinitialization from another distribution."""
    chains, n = ReplayBuffer(6000, 1.0, initial), 6000
    chains.setup(support, num_classes, make_generator(seed, "fill"))
    labels = None if num_classes is None else torch.arange(n) % num_classes
    drawn, index = chains.draw(n, labels, make_generator(seed, "draw"))
    before = chains.x.clone()
    chains.reinitialize(index[:3000], make_generator(seed, "again"))
    expected = support.clamp(initial.sample(200_000, labels=None if labels is None else torch.arange(200_000) % 3))
    for x in (before, drawn, chains.x[index[:3000]]):
        assert x.shape[1:] == (2,)
        assert not isinstance(support, Box) or support.contains(x).all()
        for power in (1, 2):
            mean, spread = float((expected**power).mean()), float((expected**power).std())
            assert abs(float((x**power).mean()) - mean) < 5 * spread / math.sqrt(x.numel() / 2) + 1e-6
    assert (chains.x[index[3000:]] == before[index[3000:]]).all()


def test_a_binary_support_initializes_binary_chains(seed):
    support = Binary((2,))
    for initial in (None, support, Binary((2,))):
        chains = ReplayBuffer(2000, 1.0, initial)
        chains.setup(support, None, make_generator(seed, "fill"))
        for x in (chains.x, chains.draw(2000, generator=make_generator(seed, "draw"))[0]):
            assert support.contains(x).all()
            assert z_score(x[:, 0], 0.5) < 5


def test_class_conditional_chains_start_in_their_class(seed):
    """Kills: labels that are ignored in ``setup``, ``draw`` or ``reinitialize``."""
    chains = ReplayBuffer(12, 1.0, AtLabel())
    chains.setup(Box(-1, 5, (2,)), 3, make_generator(seed))
    assert torch.equal(chains.x[:, 0].long(), torch.arange(12) % 3)
    labels = torch.tensor([2, 0, 2, 1])
    chains.x.fill_(4.0)
    x, index = chains.draw(4, labels, make_generator(seed))
    assert torch.equal(x[:, 0].long(), labels)
    chains.reinitialize(index)
    assert torch.equal(chains.x[index, 0].long(), labels)
    assert (chains.x == 4).all(1).sum() == 8


def test_initial_points_outside_the_support_move_to_its_wall(seed):
    chains = ReplayBuffer(12, 1.0, AtLabel())
    chains.setup(Box(-1, 5, (2,)), None, make_generator(seed))
    assert (chains.x == 5).all()
    assert (chains.draw(3)[0] == 5).all()


def test_remaining_slots_of_a_sharded_run_start_at_the_initial_distribution():
    chains = ReplayBuffer(12, 0.0, AtLabel())
    chains.setup(Box(-1, 5, (2,)), 3, make_generator(0))
    chains.load_sharded([{"x": torch.full((6, 2), 4.0), "age": torch.ones(6).long()}], 0, 2)
    assert chains.x[3:, 0].tolist() == [0, 1, 2] * 3
    assert (chains.x[:3] == 4).all()


def test_use_before_the_initial_distribution_is_fitted():
    with pytest.raises(RuntimeError, match=r"not fitted yet\. Call 'fit"):
        ReplayBuffer(4, initial=ClassGaussians()).setup(BOX)


def test_a_class_that_needs_more_chains_gets_them():
    """Kills: new chains of another class, old chains that change, indices that repeat."""
    chains = buffer(8, num_classes=4)
    before, labels = chains.x.clone(), torch.tensor([2, 2, 2, 2, 2, 1])
    with pytest.warns(UserWarning, match="each of 4 classes 2 chains, and a batch has 5 of one class: .* from 8 to 20"):
        _, index = chains.draw(6, labels)
    assert torch.equal(chains.x[:8], before)
    assert len(index.unique()) == 6
    assert torch.equal(index % 4, labels)
    assert (len(chains.x), len(chains.age), chains.size) == (20, 20, 20)
    chains.load_state_dict({"x": before, "age": torch.zeros(8, dtype=torch.long)})  # as a DivergenceGuard does
    assert (len(chains.x), chains.size) == (8, 8)
