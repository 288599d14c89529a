"""The autoregressive density is normalized, its samples follow it, and its noise is uniform and makes x again.

Mutants that these tests kill: a window that sees the pixel itself or a later one; channels that see later channels; a
front that is drawn too early; a bin's probability without that of the level within it; a level of the wrong width; the
distribution function of the bins above; noise that is not inverted; ranks that train on their own data alone.
"""

import copy
import itertools
import math
import threading

import pytest
import torch
from torch import Tensor

from ebm_lightning import JEM, AutoregressiveDensity, Box, NoiseRefresh
from ebm_lightning.rng import make_generator
from ebm_lightning.supports.causal_window import CausalWindow
from ebm_lightning.supports.gray_levels import GrayLevels
from tests.conftest import z_score

SHAPE, LEVELS = (2, 2, 3), 3
BOX = Box(-1, 1, SHAPE)


def images(n: int, seed: int = 0) -> Tensor:
    """Images in which gray levels agree along a row and over channels."""
    generator = make_generator(seed, "images")
    row = torch.randint(LEVELS, (n, 1, 2, 1), generator=generator).expand(n, *SHAPE)
    other = torch.randint(LEVELS, (n, *SHAPE), generator=generator)
    level = torch.where(torch.rand((n, *SHAPE), generator=generator) < 0.6, row, other)
    return (level + torch.rand((n, *SHAPE), generator=generator)) / LEVELS * 2 - 1


def small(bins: int = 8, **options: float | None) -> AutoregressiveDensity:
    arguments = {"radius": 1, "width": 16, "epochs": 2} | options
    return AutoregressiveDensity(BOX, LEVELS, bins=bins, **arguments)


KINDS = {"a bin for each level": {"bins": 8}, "levels share a bin": {"bins": 2}, "logistic": {"components": 2}}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def density(request: pytest.FixtureRequest) -> AutoregressiveDensity:
    density = small(**request.param)
    density.fit([(images(3000), torch.zeros(3000))], 2)
    return density


def all_levels() -> Tensor:
    return torch.tensor(list(itertools.product(range(LEVELS), repeat=12))).view(-1, *SHAPE)


def test_it_is_normalized(density: AutoregressiveDensity) -> None:
    centers = (all_levels() + 0.5) / LEVELS * 2 - 1
    log_mass = density.log_prob(centers) + 12 * math.log(2 / LEVELS)
    assert log_mass.logsumexp(0).item() == pytest.approx(0, abs=1e-5)


def test_samples_follow_it(density: AutoregressiveDensity) -> None:
    centers = (all_levels() + 0.5) / LEVELS * 2 - 1
    p = (density.log_prob(centers) + 12 * math.log(2 / LEVELS)).exp()
    exact = torch.einsum("n,ni,nj->ij", p, *[centers.flatten(1).double()] * 2)
    x = density.sample(20_000, generator=make_generator(0, "samples"))
    levels = (density.levels.level_of(x) + 0.5) / LEVELS * 2 - 1
    products = levels.flatten(1)[:, :, None] * levels.flatten(1)[:, None]
    error = (products.mean(0) - exact) / (products.std(0) / len(x) ** 0.5).clamp(min=1e-4)
    assert error.abs().max() < 5
    within = (x + 1) / 2 * LEVELS - density.levels.level_of(x)
    assert abs(z_score(within.mean((1, 2, 3)), 0.5)) < 5


def test_noise_is_uniform_and_makes_x_again(density: AutoregressiveDensity) -> None:
    x = density.sample(5000, generator=make_generator(1, "samples"))
    u, log_q = density.to_noise(x)
    again, log_q_again = density.from_noise(u)
    torch.testing.assert_close(again, x, atol=1e-5, rtol=0)
    torch.testing.assert_close(log_q_again, log_q, atol=1e-5, rtol=0)
    torch.testing.assert_close(density.log_prob(x), log_q)
    rows = u.flatten(1)
    products = (rows[:, :, None] - 0.5) * (rows[:, None] - 0.5)
    error = (products.mean(0) - torch.eye(12) / 12) / (products.std(0) / len(x) ** 0.5)
    assert error.abs().max() < 5
    assert abs(z_score(rows.mean(1), 0.5)) < 5


def test_a_fit_finds_dependencies(density: AutoregressiveDensity) -> None:
    x = images(1000, seed=1)
    independent = -12 * math.log(2)
    assert density.log_prob(x).mean() > independent + (0.1 if density.bins == 2 else 0.3)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_a_pixel_depends_on_earlier_ones_only(options: dict[str, int]) -> None:
    density = small(**options)
    density.fit([(images(500), torch.zeros(500))], 2)
    level = density.levels.level_of(images(1)).flatten(2)
    order = [(p, c) for p in range(6) for c in range(2)]
    for at, (pixel, c) in enumerate(order):
        changed = level.clone()
        changed[0, c, pixel] = (changed[0, c, pixel] + 1) % LEVELS
        p, of_changed = (density._all_pixels(x).below_and_at(torch.zeros_like(level))[1] for x in (level, changed))
        differs = (p != of_changed)[0]
        assert not any(differs[c2, p2] for p2, c2 in order[: at + 1])
        assert at == len(order) - 1 or differs.any() or pixel == 5


def test_fronts_hold_every_pixel_once_after_its_window() -> None:
    window = CausalWindow((1, 5, 7), 2)
    drawn: set[int] = set()
    image = torch.arange(35).view(5, 7)
    for front in window.fronts(torch.device("cpu")):
        for index in front.places.tolist():
            row, column = divmod(index, 7)
            rows = [(r, c) for r in range(row - 2, row + 1) for c in range(column - 2, column + 3)]
            before = [(r, c) for r, c in rows if r >= 0 and 0 <= c < 7 and (r < row or c < column)]
            assert all(int(image[r, c]) in drawn for r, c in before)
        drawn |= set(front.places.tolist())
    assert drawn == set(range(35))


@pytest.mark.parametrize("bins", [2, 5, 8, 20])
def test_bins_are_about_equally_likely(bins: int) -> None:
    levels = GrayLevels(-1, 1, 8, bins)
    levels.fit(torch.tensor([900.0, 10, 10, 10, 10, 10, 10, 40]))
    assert levels.bin_of_level[-1] == min(bins, 8) - 1
    assert levels.bin_of_level.diff().max() <= 1
    assert levels.bin_of_level[:2].tolist() == [0, 1]  # the likeliest level has a bin of its own
    x = torch.linspace(-0.999, 0.999, 500)
    level, again = levels.at_key(levels.key_of(x, levels.level_of(x)))
    assert torch.equal(level, levels.level_of(x))
    torch.testing.assert_close(again, x, atol=1e-4, rtol=0)


def on_two_ranks(data: list[Tensor]) -> list[AutoregressiveDensity]:
    """Fits of two ranks, each with its own images."""
    ranks = [small(batch_size=16, epochs=1) for _ in data]
    barrier, given = threading.Barrier(2), [torch.empty(0)] * 2

    def run(rank: int) -> None:
        def all_reduce(total: Tensor) -> Tensor:
            given[rank] = total.clone()
            barrier.wait()
            total = given[0] + given[1]
            barrier.wait()
            return total

        ranks[rank].fit([(data[rank], torch.zeros(64))], 2, all_reduce)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ranks


def test_two_ranks_with_the_same_images_fit_as_one() -> None:
    alone, data = small(batch_size=16, epochs=1), images(64)
    alone.fit([(data, torch.zeros(64))], 2)
    for rank in on_two_ranks([data, data]):
        torch.testing.assert_close(rank.log_prob(data), alone.log_prob(data), atol=1e-3, rtol=0)


def test_two_ranks_with_different_images_get_the_same_fit() -> None:
    first, second = on_two_ranks([images(64), -images(64)])
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, second.state_dict()[name])


def test_it_is_part_of_the_state_and_keeps_its_precision(density: AutoregressiveDensity) -> None:
    model = JEM(torch.nn.Flatten(), 12, Box(-1, 1, SHAPE, reference=density), NoiseRefresh())
    other = small(density.bins, components=density.components)
    loaded = JEM(torch.nn.Flatten(), 12, Box(-1, 1, SHAPE, reference=other), NoiseRefresh())
    loaded.load_state_dict(model.state_dict())
    x = images(10)
    assert other.fitted
    assert torch.equal(other.log_prob(x), density.log_prob(x))
    assert not list(model.parameters())
    half = copy.deepcopy(density).bfloat16()
    assert torch.equal(half.log_prob(x), density.log_prob(x))


def test_its_gradient_is_zero(density: AutoregressiveDensity) -> None:
    x = images(4).requires_grad_()
    (gradient,) = torch.autograd.grad(density.log_prob(x).sum(), x)
    assert not gradient.any()
    assert not density.log_prob_and_gradient(x)[1].any()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="'box'"):
        AutoregressiveDensity(Box(0, 1, (4,)))
    with pytest.raises(ValueError, match="'num_levels'"):
        AutoregressiveDensity(BOX, 300)
    with pytest.raises(RuntimeError, match="not fitted"):
        small().sample(2)
    with pytest.raises(ValueError, match="'batches'"):
        small().fit([], 2)
    with pytest.raises(ValueError, match="'learning_rate'"):
        small(learning_rate=1e30).fit([(images(50), torch.zeros(50))], 2)
