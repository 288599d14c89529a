"""Quantiles: bins, smoothing, walls, tails and precision.

Mutants that these tests kill: a value on an edge counted twice; smoothing by the counts of the component itself, or
without its uniform part; a level of mass 0; cells of width 0 where data repeat a value; float32 sums; a tail with the
scale of the outer cell; a fit to the first rows only.
"""

import math

import pytest
import torch
from torch import Tensor

from ebm_lightning.coordinates import Quantiles
from ebm_lightning.data.dequantization import dequantize
from ebm_lightning.supports import Binary, Box, Euclidean, Gaussian
from tests.coordinates.kinds import log_q, midpoints


def levels_as_data(levels: Tensor, num_levels: int, box: Box, generator: torch.Generator | None = None) -> Tensor:
    noise = torch.rand(levels.shape, generator=generator, dtype=torch.float64)
    return box.low + (levels + noise) / num_levels * (box.high - box.low)


def masses(coordinates: Quantiles) -> Tensor:
    return coordinates.cumulative.diff(dim=1)


@pytest.mark.parametrize("smoothing", [None, 0.5, 30.0])
def test_masses_are_smoothed_counts(smoothing, seed):
    box, q, n = Box(-2, 3, (3,)), 7, 400
    levels = torch.randint(q - 2, (n, 3)) * torch.tensor([1, 1, 0])  # the last levels are never seen
    coordinates = Quantiles(box, q, smoothing=smoothing).fit(levels_as_data(levels, q, box).split(64))
    counts = torch.stack([levels[:, d].bincount(minlength=q) for d in range(3)]).double()
    added = q if smoothing is None else smoothing
    mass = counts + added * (0.95 * counts.sum(0) / counts.sum() + 0.05 / q)
    assert torch.allclose(masses(coordinates), mass / mass.sum(1, keepdim=True), rtol=1e-12)
    assert coordinates.cumulative[:, 0].eq(0).all()
    assert coordinates.cumulative[:, -1].eq(1).all()


def test_the_density_of_a_level_is_its_mass_over_its_width(seed):
    box, q = Box(-1, 1, (1,)), 4
    levels = torch.tensor([0, 0, 0, 1, 3, 3])[:, None]
    coordinates = Quantiles(box, q, smoothing=1e-9).fit(levels_as_data(levels, q, box))
    middles = midpoints(-1, 1, q, 1)[0]
    assert torch.allclose(log_q(coordinates, middles)[[0, 1, 3]].exp() * 0.5, torch.tensor([3, 1, 2]).double() / 6)


def test_values_on_an_edge_belong_to_the_level_above_and_the_upper_wall_to_the_last():
    box = Box(0, 1, (1,))
    coordinates = Quantiles(box, 4, smoothing=1e-9).fit(torch.tensor([[0.0], [0.25], [0.5], [0.5], [1.0]]))
    assert torch.allclose(masses(coordinates)[0] * 5, torch.tensor([1.0, 1, 2, 1]).double())


def test_a_level_that_was_never_seen_has_mass(seed):
    box, q = Box(-1, 1, (4,)), 256
    x = levels_as_data(torch.full((10_000, 4), 3), q, box)
    coordinates = Quantiles(box, q).fit(x)
    assert torch.allclose(masses(coordinates).min(), torch.tensor(0.05 / (10_000 + q)).double())
    unseen = levels_as_data(torch.arange(4, q)[:, None].expand(-1, 4), q, box)
    assert log_q(coordinates, unseen).isfinite().all()
    assert torch.allclose(coordinates.inv(coordinates(unseen)), unseen, rtol=0, atol=1e-9)


def test_walls_map_to_walls():
    box = Box(-3, 0.7, (2,))
    data = levels_as_data(torch.randint(9, (300, 2), generator=torch.Generator().manual_seed(0)), 9, box)
    walls = torch.tensor([[-3, 0.7], [0.7, -3]], dtype=torch.float64)
    for coordinates in (Quantiles(box, 9).fit(data), Quantiles(box, cells=20).fit(data)):
        for dtype in (torch.float64, torch.float32):
            u = coordinates(walls.to(dtype))
            assert ((u >= 0) & (u <= 1)).all()
            assert torch.allclose(u.double(), torch.tensor([[0.0, 1], [1, 0]]).double(), atol=1e-6)
            x = coordinates.inv(torch.tensor([[0.0, 1], [1, 0]], dtype=dtype))
            box.check(x.double() if dtype == torch.float64 else x.clamp(-3, box.high))
            assert torch.allclose(x, walls.to(dtype))
        assert log_q(coordinates, walls).isfinite().all()


@pytest.mark.parametrize("domain", [Box(-1, 1, (3,)), Euclidean((3,))], ids=["box", "plane"])
def test_constant_components_and_repeated_values(domain, seed):
    """One component is constant, one has half its values at 0, and one has three values."""
    n = 400
    half = torch.rand(n) * 2 - 1
    half[::2] = 0
    x = torch.stack([torch.full((n,), 0.25), half, torch.randint(3, (n,)) * 0.5 - 0.5], 1).double()
    coordinates = Quantiles(domain, cells=32).fit(x)
    assert (coordinates.knots.diff(dim=1) > 0).all()
    assert (masses(coordinates) > 0).all()
    assert torch.allclose(coordinates.inv(coordinates(x)), x, rtol=0, atol=1e-9)
    assert log_q(coordinates, x).isfinite().all()
    other = torch.rand(n, 3).double() * 2 - 1
    if isinstance(domain, Box):  # far in a narrow upper tail, u is 1 to the last digit
        assert torch.allclose(coordinates.inv(coordinates(other)), other, rtol=0, atol=1e-6)
    assert log_q(coordinates, other).isfinite().all()
    assert log_q(coordinates, x).mean() > log_q(coordinates, other).mean() + 3


@pytest.mark.parametrize("domain", [Box(-4, 4, (1,)), Euclidean((1,))], ids=["box", "plane"])
def test_one_dimensional_densities_integrate_to_one(domain, seed):
    coordinates = Quantiles(domain, cells=24).fit(torch.randn(700, 1).double().clamp(-3.9, 3.9))
    points, width = midpoints(*((-4, 4) if isinstance(domain, Box) else (-40, 40)), 400_000, 1)
    assert float(log_q(coordinates, points).exp().sum()) * width == pytest.approx(1, abs=1e-4)


def test_cells_of_continuous_data_hold_equal_counts(seed):
    n, cells = 641, 16  # 640 gaps, so that knots are data
    x = torch.randn(n, 2).double()
    coordinates = Quantiles(Euclidean((2,)), cells=cells, smoothing=8.0).fit(x.split(100))
    assert torch.equal(coordinates.knots, x.sort(0).values[::40].T)
    counts = torch.full((cells,), 40.0)
    counts[-1] = 41
    mass = counts + 8.0 / cells
    assert torch.allclose(masses(coordinates), (mass / mass.sum()).double().expand(2, -1))


def test_tails_are_exponentials_with_the_mean_excess_of_the_data(seed):
    x = torch.randn(2000, 1).double()
    coordinates = Quantiles(Euclidean((1,)), cells=20).fit(x)
    low, high = coordinates.knots[0, [1, -2]]
    scales = (low - x[x < low]).mean(), (x[x > high] - high).mean()
    for knot, scale, sign in ((low, scales[0], -1), (high, scales[1], 1)):
        tail = knot + sign * torch.linspace(0.01, 30, 50, dtype=torch.float64)[:, None]
        slope = log_q(coordinates, tail).diff() / tail[:, 0].diff().abs()
        assert torch.allclose(slope, -1 / scale.expand(49), rtol=1e-6)
    mass = masses(coordinates)[0, -1]
    u = coordinates(high + torch.tensor([[0.5], [2.0]]).double())
    assert torch.allclose(1 - u[:, 0], mass * torch.exp(-torch.tensor([0.5, 2.0]).double() / scales[1]))
    assert coordinates.inv(torch.tensor([[0.0], [1.0]])).isfinite().all()


def test_data_far_from_0_have_the_same_map(seed):
    x = torch.randn(1000, 2).double()
    near, far = (Quantiles(Euclidean((2,)), cells=32).fit(x + c) for c in (0.0, 1e6))
    assert torch.allclose(far(x + 1e6), near(x), rtol=0, atol=1e-7)
    u = near(x)
    assert torch.allclose(far.log_abs_det_jacobian(x + 1e6, u), near.log_abs_det_jacobian(x, u), atol=1e-5)
    assert torch.allclose(far.inv(far(x + 1e6)), x + 1e6, rtol=0, atol=1e-8)
    box = Quantiles(Box(1e6, 1e6 + 1, (2,)), 8).fit(1e6 + torch.rand(99, 2).double())
    assert torch.allclose(masses(box).sum(1), torch.ones(2).double())


def test_float32_at_784_dimensions_and_256_levels(seed):
    """Pixels like those of digits. The error in x is below a tenth of a level, also where u is coarsest."""
    box, q = Box(-1, 1, (1, 28, 28)), 256
    generator = torch.Generator().manual_seed(seed)
    ink = torch.rand(784, generator=generator).square()
    levels = (torch.rand(2000, 784, generator=generator) < ink) * torch.randint(q, (2000, 784), generator=generator)
    levels[:, :50] = 0
    x = dequantize(levels.view(-1, 1, 28, 28).float(), q, box, generator)
    assert x.dtype == torch.float32
    coordinates = Quantiles(box, q).fit(x.split(256))
    u = coordinates(x)
    exact = coordinates(x.double())
    assert (u.double() - exact).abs().max() < 6e-8
    assert ((coordinates.inv(u) - x).abs() * q / 2).max() < 0.1
    log_det = coordinates.log_abs_det_jacobian(x, u)
    assert torch.equal(log_det, coordinates.log_abs_det_jacobian(x.double(), exact))
    assert log_det.std() > 50, "it differs from image to image"
    counted = torch.stack([(levels == k).sum(0) for k in range(q)], 1).double()
    mass = counted + q * (0.95 * counted.sum(0) / counted.sum() + 0.05 / q)
    assert torch.allclose(masses(coordinates) * (2000 + q), mass, rtol=0, atol=2.01), "a draw may round up to the next"
    per_pixel = -(log_det / (784 * math.log(2))).mean() + math.log2(q / 2)
    log_mass = (mass / (2000 + q)).log2().gather(1, levels.T).T
    assert float(per_pixel) == pytest.approx(-float(log_mass.mean()), abs=1e-4)


def test_the_fit_does_not_depend_on_batches(seed):
    x = torch.rand(500, 3).double() * 2 - 1
    for make in (lambda: Quantiles(Box(-1, 1, (3,)), 6), lambda: Quantiles(Euclidean((3,)), cells=10)):
        whole = make().fit(x)
        for size in (1, 7, 499):
            assert torch.equal(make().fit(x.split(size)).cumulative, whole.cumulative)


def test_bad_arguments(seed):
    box = Box(-1, 1, (2,))
    for levels in (1, 0, 2.5, "many"):
        with pytest.raises(ValueError, match="'num_levels' should be"):
            Quantiles(box, levels)
    with pytest.raises(ValueError, match="'cells' should be at least 4, got 3"):
        Quantiles(box, cells=3)
    with pytest.raises(ValueError, match="'smoothing' should be positive or None, got 0"):
        Quantiles(box, smoothing=0)
    with pytest.raises(ValueError, match="'domain' should be the Box of the levels, got Euclidean"):
        Quantiles(Euclidean((2,)), 5)
    for domain in (Euclidean(), Binary((2,)), Gaussian(0.0, 1.0, (2,))):
        with pytest.raises(ValueError, match="'domain' should be a Box or Euclidean with a shape"):
            Quantiles(domain)
    with pytest.raises(ValueError, match=r"'cells' should be at most the number of data, got 64 for 63. Use fewer"):
        Quantiles(box).fit(torch.rand(63, 2))
