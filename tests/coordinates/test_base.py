"""What holds for coordinates of every kind: they are invertible, with a known Jacobian, and part of a model's state.

Mutants that these tests kill: a Jacobian of the wrong sign, of the inverse map, or without one of the parts; tails of
the wrong mass; a wall that maps outside [0, 1]; tables in half precision; an inverse matrix that is not recomputed
after loading; a fit that draws from the global random state; gradients that stay on the weights of a flow.
"""

import copy

import pytest
import torch
import yaml
import zuko
from torch.autograd.functional import jacobian

from ebm_lightning.coordinates import Compose, Coordinates, Flow, Identity, NormalScores, Quantiles, Whitening
from ebm_lightning.coordinates.compose import same_space
from ebm_lightning.resume.hparams import describe, rebuild
from ebm_lightning.supports import Binary, Box, Euclidean, Gaussian
from tests.coordinates.kinds import BOX, KINDS, fitted, log_q, midpoints, small_flow

each = pytest.mark.parametrize("kind", KINDS)
AREA = {  # for each kind, the square that holds the mass, and points on a side
    "levels": (-1, 1, 20 * 5),
    "continuous in a box": (-1, 1, 1500),
    "continuous in the plane": (-25, 25, 2000),
    "radial power, whitened": (-9, 9, 600),
    "whitening": (-7, 7, 300),
    "normal scores": (0, 1, 50),
    "copula": (-1, 1, 500),
    "flow": (-9, 9, 300),
}


def precision(kind: str) -> float:
    return 1e-3 if kind == "flow" else 1e-9  # the weights of a flow are float32


@each
def test_round_trips(kind, seed):
    coordinates = fitted(kind)
    x = KINDS[kind][1]()
    assert torch.allclose(coordinates.inv(coordinates(x)), x, rtol=0, atol=precision(kind))
    u = coordinates.codomain.sample(500).double()
    there = coordinates.inv(u)
    coordinates.domain.check(there)
    assert torch.allclose(coordinates(there), u, rtol=0, atol=10 * precision(kind))


@each
def test_the_log_determinant_is_that_of_the_jacobian(kind):
    coordinates = fitted(kind)
    for x in KINDS[kind][1]()[:12]:
        exact = jacobian(lambda x: coordinates(x[None])[0], x).double().slogdet().logabsdet
        given = coordinates.log_abs_det_jacobian(x[None], coordinates(x[None]))
        assert given.shape == (1,)
        assert given.dtype == torch.float64
        assert float(given - exact) == pytest.approx(0, abs=precision(kind))


@each
@torch.no_grad()
def test_the_density_integrates_to_one(kind):
    points, volume = midpoints(*AREA[kind], 2)
    total = sum(float(log_q(fitted(kind), part).exp().sum()) for part in points.split(200_000)) * volume
    assert total == pytest.approx(1, abs=5e-3)


@each
def test_data_are_likelier_than_under_a_uniform_or_normal_density(kind):
    """Of the right location and scale; the map of normal scores is not fitted."""
    x = KINDS[kind][1]()
    if kind == "normal scores":
        assert torch.allclose(log_q(fitted(kind), x), torch.zeros(len(x), dtype=torch.float64), atol=1e-6)
    else:
        independent = Box(-1, 1, (2,)) if isinstance(fitted(kind).domain, Box) else Gaussian(x.mean(0), x.std(0), (2,))
        assert log_q(fitted(kind), x).mean() > independent.log_prob(x).mean()


@each
def test_the_reference_is_drawn_by_the_inverse(kind, seed):
    """Mean and variance of what the inverse makes of u against those of the density by quadrature, z below 5."""
    coordinates = fitted(kind)
    x = coordinates.inv(coordinates.codomain.sample(4000).double())
    points, volume = midpoints(*AREA[kind], 2)
    with torch.no_grad():
        mass = torch.cat([log_q(coordinates, part).exp() for part in points.split(200_000)]) * volume
    for f in (lambda x: x[:, 0], lambda x: x[:, 1], lambda x: x[:, 0] * x[:, 1], lambda x: x[:, 0] ** 2):
        expected = float((mass * f(points)).sum() / mass.sum())
        assert abs(float(f(x).mean()) - expected) < 5 * float(f(x).std()) / 4000**0.5


@each
def test_types_and_shapes_are_those_of_the_argument(kind):
    coordinates = fitted(kind)
    for dtype in (torch.float64, torch.float32):
        x = KINDS[kind][1]()[:7].to(dtype)
        u = coordinates(x)
        assert u.dtype == coordinates.inv(u).dtype == dtype
        assert u.shape == coordinates.inv(u).shape == x.shape
        assert coordinates.log_abs_det_jacobian(x, u).dtype == torch.float64


@each
def test_a_state_dict_holds_the_map(kind, tmp_path):
    """Bit-equal, also for what is computed from the state, such as an inverse matrix."""
    first, again, x = fitted(kind), KINDS[kind][0](), KINDS[kind][1]()
    assert again.fitted == (kind == "normal scores")
    torch.save(first.state_dict(), tmp_path / "state.pt")
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.fitted
    same_map(first, again, x)
    same_map(first, copy.deepcopy(first), x)


def same_map(one: Coordinates, other: Coordinates, x: torch.Tensor) -> None:
    u = one(x)
    assert torch.equal(other(x), u)
    assert torch.equal(other.inv(u), one.inv(u))
    assert torch.equal(other.log_abs_det_jacobian(x, u), one.log_abs_det_jacobian(x, u))


@each
@pytest.mark.parametrize("convert", ["half", "bfloat16"])
def test_numbers_keep_their_precision(kind, convert):
    converted = getattr(torch.nn.Sequential(fitted(kind)), convert)()[0]
    same_map(fitted(kind), converted, KINDS[kind][1]())


@each
def test_a_description_rebuilds_unfitted_coordinates(kind):
    description = describe(KINDS[kind][0]())
    if kind == "flow":
        with pytest.raises(ValueError, match=r"'coordinates' should be given: 'zuko.* cannot be rebuilt"):
            rebuild(description, Coordinates, "coordinates")
        return
    again = rebuild(yaml.safe_load(yaml.safe_dump(description)), Coordinates, "coordinates")
    assert type(again) is type(fitted(kind))
    assert describe(again) == description
    again.load_state_dict(fitted(kind).state_dict())
    same_map(fitted(kind), again, KINDS[kind][1]())


@each
def test_a_fit_does_not_change_the_random_state_or_keep_gradients(kind):
    coordinates, x = KINDS[kind][0](), KINDS[kind][1]()
    state = torch.get_rng_state()
    with torch.inference_mode():
        coordinates.fit(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and not p.requires_grad for p in coordinates.parameters())
    assert not any(t.is_inference() for t in (*coordinates.parameters(), *coordinates.buffers()))


def test_the_identity_changes_nothing():
    x = BOX.sample(5)
    assert Identity(BOX).fit(x)(x) is Identity(BOX).inv(x) is x
    assert not Identity(BOX).log_abs_det_jacobian(x, x).any()
    assert Identity().domain == Euclidean()


# Errors.


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "normal scores"])
def test_coordinates_that_are_not_fitted_say_so(kind):
    coordinates, x = KINDS[kind][0](), KINDS[kind][1]()
    for call in (coordinates, coordinates.inv, lambda x: coordinates.log_abs_det_jacobian(x, x)):
        with pytest.raises(RuntimeError, match=r"coordinates are not fitted yet. Call 'coordinates.fit\(x\)'"):
            call(x)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "normal scores"])
def test_a_fit_needs_data_of_the_domain(kind):
    coordinates, x = KINDS[kind][0](), KINDS[kind][1]()
    for empty in ([], x[:0], [x[:0], x[:0]], iter(())):
        with pytest.raises(ValueError, match=r"'batches' should hold training data, got none. A generator"):
            coordinates.fit(empty)
    with pytest.raises(ValueError, match=r"'x' should have shape \(N, 2\)"):
        coordinates.fit(x[:, :1])
    with pytest.raises(ValueError, match="'x' should be finite"):
        coordinates.fit([x, torch.full_like(x, torch.nan)])
    assert not coordinates.fitted


def test_data_outside_the_box_are_refused():
    for coordinates in (Quantiles(BOX, 5), Quantiles(BOX), KINDS["copula"][0]()):
        with pytest.raises(ValueError, match=r"'x' should be in the box \[-1, 1\]"):
            coordinates.fit([torch.full((9, 2), 1.5)])


@each
def test_an_empty_batch_among_others_changes_nothing(kind):
    make, x = KINDS[kind][0], KINDS[kind][1]()
    same_map(fitted(kind), make().fit([x[:125], x[:0], *x[125:].split(125)]), x)


def test_a_generator_serves_one_pass_only():
    x = KINDS["levels"][1]()
    for coordinates in (Quantiles(BOX, 5), Quantiles(BOX), Whitening((2,))):
        assert coordinates.fit(part for part in x.split(100)).fitted
    copula = KINDS["copula"][0]()
    with pytest.raises(ValueError, match="A generator can be read only once: pass a list"):
        copula.fit(part for part in x.split(100))
    assert not copula.fitted


def test_the_parts_of_a_composition_follow_on_one_another():
    parts = [Quantiles(BOX, 5), NormalScores((2,)), Whitening((2,))]
    assert Compose(parts).domain == BOX
    assert Compose(parts).codomain is parts[-1].codomain
    with pytest.raises(ValueError, match="'parts' should hold at least one of the coordinates, got none"):
        Compose([])
    with pytest.raises(ValueError, match=r"got Whitening on .* after Quantiles, whose values are in Box.*NormalScores"):
        Compose([parts[0], parts[2]])
    with pytest.raises(ValueError, match=r"got NormalScores on Box.*shape=.3,"):
        Compose([parts[0], NormalScores((3,))])
    with pytest.raises(ValueError, match=r"got Quantiles on Box.* after Quantiles"):
        Compose([parts[0], Quantiles(BOX, 5)])


def test_spaces_are_compared_as_sets():
    assert same_space(Box(0, 1, (2,)), Box(0.0, 1.0, [2]))
    assert same_space(Gaussian(0.0, 1.0, (2,)), Euclidean((2,)))
    assert same_space(Gaussian(0.0, 1.0, (2,)), Euclidean())
    for other in (Box(0, 2, (2,)), Box(0, 1, (3,)), Euclidean((2,)), Binary((2,))):
        assert not same_space(Box(0, 1, (2,)), other)
    assert not same_space(Binary((2,)), Gaussian(0.0, 1.0, (2,)))
    assert same_space(Binary((2,)), Binary((2,)))


def test_flows_of_another_kind_are_refused():
    flow = small_flow().flow
    with pytest.raises(ValueError, match=r"over 3 components, got NSF over \(2,\). Use .* zuko.flows.NSF\(3\)"):
        Flow(flow, (3,))
    with pytest.raises(ValueError, match="'flow' should have a standard normal base, got BoxUniform"):
        Flow(zuko.flows.NCSF(2, transforms=1, hidden_features=(8,)), (2,))
    with pytest.raises(ValueError, match="'epochs' should be 0 or positive, got -1"):
        Flow(flow, (2,), epochs=-1)
    with pytest.raises(ValueError, match="'learning_rate' should be positive, got 0"):
        Flow(flow, (2,), learning_rate=0)
