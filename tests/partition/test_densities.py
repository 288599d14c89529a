"""One density as reference of a support, as initial distribution of chains and as annealing proposal."""

import math

import pytest
import torch
from torch import Tensor

from ebm_lightning import ClassGaussians, ReplayBuffer
from ebm_lightning.energies import GaussianEnergy, JointEnergy, MixtureLogits
from ebm_lightning.networks import MLP
from ebm_lightning.partition import Normal, ais, quadrature, reverse_ais
from ebm_lightning.partition.proposals import check_samples, checked_proposal
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Binary, Box, Density, Euclidean, Gaussian
from tests.conftest import gaussian_z

BOX, PLANE = Box(-2, 2, (2,)), Euclidean((2,))
MODES = JointEnergy(MixtureLogits(torch.tensor([[1.5, 0.0], [-1.5, 0.0]]), 0.6), PLANE)


SMALL = {"temperatures": 60, "num_chains": 400}


class Tent(Density):
    """On a box [-2, 2]^2: half uniform, half triangular in each component (the sum of two uniform draws)."""

    box = BOX

    def log_prob(self, x: Tensor) -> Tensor:
        return (0.5 / 16 + 0.5 * ((2 - x.abs()) / 4).prod(1)).log()

    def sample(self, n, *, labels=None, generator=None, device=None):
        u = 2 * torch.rand(2, n, 2, generator=generator, device=device) - 1
        uniform = torch.rand(n, 1, generator=generator, device=device) < 0.5
        return torch.where(uniform, 2 * u[0], u.sum(0))


def fitted_class_gaussians(seed: int) -> ClassGaussians:
    generator = make_generator(seed, "data")
    x, y = 2 * torch.randn(400, 2, generator=generator), torch.randint(2, (400,), generator=generator)
    density = ClassGaussians(1e-2)
    density.fit([(x, y)], 2)
    return density


@pytest.mark.parametrize("kind", ["support", "normal", "class gaussians"])
def test_every_density_is_a_proposal_on_the_plane(kind, seed):
    """A support given as proposal has ``log_prob`` of its normalized reference density."""
    proposals = {
        "support": lambda: Gaussian(0.0, 2.0, (2,)),
        "normal": lambda: Normal(torch.zeros(2), torch.full((2,), 2.0)),
        "class gaussians": lambda: fitted_class_gaussians(seed),
    }
    result = ais(MODES, PLANE, proposal=proposals[kind](), **SMALL, generator=make_generator(seed, "ais"))
    assert abs(result.log_z) < 5 * result.std_err + 1e-3
    assert result.reliable


def test_a_support_as_proposal_equals_the_same_normal_density(seed):
    support, normal = Gaussian([0.5, 0.0], [1.0, 2.0], (2,)), Normal(torch.tensor([0.5, 0.0]), torch.tensor([1.0, 2.0]))
    a, b = (
        ais(MODES, PLANE, proposal=proposal, temperatures=20, generator=make_generator(seed, "ais"))
        for proposal in (support, normal)
    )
    x = torch.randn(50, 2)
    torch.testing.assert_close(support.log_prob(x), normal.log_prob(x), rtol=1e-5, atol=1e-5)
    assert abs(a.log_z - b.log_z) < 5 * math.hypot(a.std_err, b.std_err) + 1e-3


def test_the_uniform_box_as_proposal_equals_the_default(seed):
    energy = JointEnergy(MLP(2, 3, (8,)), BOX)
    a, b = (
        ais(energy, BOX, proposal=proposal, temperatures=9, num_chains=40, generator=make_generator(seed, "ais"))
        for proposal in (None, Box(-2.0, 2.0, (2,)))
    )
    assert torch.equal(a.log_weights, b.log_weights)


def test_a_custom_density_is_a_proposal(seed):
    energy = JointEnergy(MLP(2, 3, (8,)), BOX)
    result = ais(energy, BOX, proposal=Tent(), **SMALL, generator=make_generator(seed, "ais"))
    assert abs(result.log_z - quadrature(energy, BOX)) < 5 * result.std_err + 1e-3


@pytest.mark.parametrize("density", [Normal(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 1.5]), BOX), Tent()])
def test_one_density_is_reference_initial_distribution_and_proposal(density, seed):
    """log Z of a tilted reference, annealed from that reference, matches quadrature."""
    support = Box(-2, 2, (2,), reference=density)
    energy = JointEnergy(MLP(2, 3, (8,)), support)
    truth = quadrature(energy, support)
    for proposal in (None, density):
        result = ais(energy, support, proposal=proposal, **SMALL, generator=make_generator(seed, "ais"))
        assert abs(result.log_z - truth) < 5 * result.std_err + 1e-3
    chains, default = ReplayBuffer(20_000, initial=density), ReplayBuffer(20_000)
    for buffer in (chains, default):
        buffer.setup(support, generator=make_generator(seed, "chains"))
        assert bool(support.contains(buffer.x).all())
    assert torch.equal(chains.x, default.x)
    squared = math.exp(quadrature(lambda x: -2 * density.log_prob(x), BOX))
    values = density.log_prob(chains.x).exp()
    assert abs(float(values.mean()) - squared) < 5 * float(values.std()) / 20_000**0.5


def test_a_density_makes_the_mass_of_the_plane_finite(seed):
    density = Normal(torch.zeros(2), torch.full((2,), 2.0))
    support = Euclidean((2,), reference=density)
    energy = JointEnergy(MixtureLogits(torch.zeros(1, 2), 1.0), support)
    exact = -math.log(2 * math.pi * 5)  # the integral of N(x; 0, 4 I) N(x; 0, I) is N(0; 0, 5 I)
    assert support.log_mass == 0
    for proposal in (None, density):
        result = ais(energy, support, proposal=proposal, **SMALL, generator=make_generator(seed, "ais"))
        assert abs(result.log_z - exact) < 5 * result.std_err + 1e-3
    buffer = ReplayBuffer(20_000, initial=density)
    buffer.setup(support, generator=make_generator(seed, "chains"))
    assert gaussian_z(buffer.x[:, 0], 0, 4) < 5


@pytest.mark.parametrize(
    ("support", "proposal", "message"),
    [
        (
            BOX,
            fitted_class_gaussians(0),
            r"the box \[-2, 2\], got ClassGaussians on R\^D. Use Normal.fit\(data, box",
        ),
        (BOX, Normal(torch.zeros(2), torch.ones(2), Box(-1, 1, (2,))), r"the box \[-2, 2\], got Normal on the box"),
        (BOX, Gaussian(0.0, 1.0, (2,)), r"the box \[-2, 2\], got Gaussian on R\^D"),
        (BOX, Box(-1, 1, (2,)), r"the box \[-2, 2\], got Box on the box \[-1, 1\]"),
        (Box(0, 1, (2,)), Binary((2,)), r"the box \[0, 1\], got Binary on binary units"),
        (PLANE, Binary((2,)), r"R\^D, got Binary on binary units"),
        (PLANE, BOX, r"R\^D, got Box on the box \[-2, 2\]. Use Normal.fit\(data\)"),
        (PLANE, Normal(torch.zeros(2), torch.ones(2), BOX), r"R\^D, got Normal on the box"),
        (PLANE, Euclidean((2,)), "'support' should have finite mass, got Euclidean"),
    ],
)
def test_a_proposal_on_another_domain_is_refused(support, proposal, message):
    energy = GaussianEnergy(torch.zeros(2), torch.ones(2))
    match = message if "'" in message else f"'proposal' should have the domain of the support, {message}"
    with pytest.raises(ValueError, match=match):
        ais(energy, support, proposal=proposal, temperatures=2, num_chains=20)
    with pytest.raises(ValueError, match=match):
        reverse_ais(energy, support, torch.rand(4, 2), exact=False, proposal=proposal, temperatures=2)


@pytest.mark.parametrize("narrow", [False, True])
def test_a_normal_on_a_box_is_truncated_to_it(narrow, seed):
    """``Normal.fit(data)`` without a box is what users write. On R^D it made log Z too high, or was refused."""
    data = 0.5 + (0.1 if narrow else 3.0) * torch.randn(500, 2, generator=make_generator(seed, "data"))
    data = BOX.reflect(data)
    energy = JointEnergy(MLP(2, 3, (8,)), BOX)
    implicit, explicit = (
        ais(energy, BOX, proposal=Normal.fit(data, box), **SMALL, generator=make_generator(seed, "ais"))
        for box in (None, BOX)
    )
    assert implicit.log_z == explicit.log_z
    if not narrow:  # a narrow proposal does not cover the energy
        assert abs(implicit.log_z - quadrature(energy, BOX)) < 5 * implicit.std_err + 1e-3


def test_a_quadratic_energy_on_a_box_from_a_normal(seed):
    """1.595 from a proposal on R^D; the truth is .802."""
    box = Box(-1, 1, (2,))
    proposal = Normal(torch.zeros(2), torch.ones(2))
    result = ais(lambda x: x.square().sum(1), box, proposal=proposal, **SMALL, generator=make_generator(seed, "ais"))
    assert abs(result.log_z - 2 * math.log(math.sqrt(math.pi) * math.erf(1))) < 5 * result.std_err + 1e-3
    assert proposal.box is None, "the proposal of the user does not change"


@pytest.mark.parametrize("mean", [2.5, -2.5])
def test_a_normal_with_its_mean_outside_the_box_is_refused(mean):
    with pytest.raises(ValueError, match=r"'proposal' should have its mean in the box \[-2, 2\], got values between"):
        checked_proposal(Normal(torch.tensor([0.0, mean]), torch.ones(2)), BOX)


class Broken(Tent):
    """A density on the box with a fault in what it draws or in its ``log_prob``."""

    def __init__(self, draws=lambda x: x, log_prob=lambda log_p: log_p) -> None:
        self.draws, self.log_p = draws, log_prob

    def sample(self, n, **arguments):
        return self.draws(super().sample(n, **arguments))

    def log_prob(self, x):
        return self.log_p(super().log_prob(x))


@pytest.mark.parametrize(
    ("support", "proposal", "message"),
    [
        (
            BOX,
            Normal(torch.zeros(3), torch.ones(3)),
            r"shape \(N, 2\) inside the box \[-2, 2\], got shape \(200, 3\) from",
        ),
        (BOX, Normal(torch.zeros(3), torch.ones(3), BOX), r"got shape \(200, 3\) from Normal"),
        (BOX, Box(-2, 2, (3,)), r"got shape \(200, 3\) from Box"),
        (Gaussian(0.0, 1.0, (2,)), Gaussian(0.0, 1.0, (1,)), r"inside R\^D, got shape \(200, 1\) from Gaussian"),
        (BOX, Broken(lambda x: 1.1 * x), "got samples between -2.* and 2.* from Broken"),
        (BOX, Broken(lambda x: x * math.nan), "got torch.float32 samples with NaN or infinite values"),
        (BOX, Broken(lambda x: x.long()), "got torch.int64 samples"),
        (
            BOX,
            Broken(log_prob=lambda log_p: log_p[:, None]),
            r"finite log_prob of shape \(200,\) .*got shape \(200, 1\)",
        ),
        (BOX, Broken(log_prob=lambda log_p: log_p - math.inf), "with 200 NaN or infinite values"),
    ],
)
def test_samples_of_a_proposal_have_to_be_in_the_support(support, proposal, message):
    with pytest.raises(ValueError, match=f"'proposal' should .*{message}"):
        check_samples(checked_proposal(proposal, support), support, "cpu")


def test_checks_of_a_proposal_do_not_change_random_numbers(seed):
    before = torch.get_rng_state()
    for proposal in (BOX, Tent(), Normal(torch.zeros(2), torch.ones(2), BOX)):
        x = check_samples(proposal, BOX, "cpu")
        assert torch.equal(x, check_samples(proposal, BOX, "cpu"))
    assert torch.equal(before, torch.get_rng_state())


def test_data_that_a_normal_is_fitted_to_are_checked():
    with pytest.raises(ValueError, match=r"'data' should be in the box \[-2, 2\]"):
        Normal.fit(3 * torch.ones(5, 2), BOX)
    with pytest.raises(ValueError, match="'data' should be at least 2 finite rows"):
        Normal.fit(torch.ones(1, 2))
    with pytest.raises(ValueError, match="'data' should be at least 2 finite rows"):
        Normal.fit(torch.tensor([[0.0], [math.nan]]))
    with pytest.raises(ValueError, match="'floor' should be positive"):
        Normal.fit(torch.ones(5, 2), floor=0)


def test_the_standard_deviation_of_a_normal_is_positive():
    with pytest.raises(ValueError, match=r"'std' should be positive, got 0\."):
        Normal(torch.zeros(2), torch.tensor([1.0, 0.0]))
