"""Makers of the named targets of ``adversarial.py``: where annealing, quadrature and bounds went wrong."""

import functools
import math
from dataclasses import replace

import torch
from known_energies import RBM, Funnel, RotatedGaussian, Shells, Spikes, Student, Valley, mixture, two_phases
from targets import (
    Estimator,
    Target,
    anneal,
    anneal_both_ways,
    anneal_class,
    anneal_rbm,
    anneal_unchanged,
    compute,
    normal,
    reverse,
)
from torch import Tensor, nn

from ebm_lightning.energies import Energy, JointEnergy
from ebm_lightning.networks import MLP
from ebm_lightning.partition import Normal, StudentT, exact_log_z, quadrature
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Box, Euclidean, Gaussian

LOG_ROOT_TWO_PI = 0.5 * math.log(2 * math.pi)
SQUARE = Box(-1, 1, (2,))


def half_square(x: Tensor) -> Tensor:
    """|x|^2 / 2."""
    return 0.5 * x.square().sum(1)


def spikes() -> tuple[Spikes, Tensor]:
    """Three modes of mass e^3 each, and 300 samples."""
    rng = make_generator(0, "spikes")
    energy = Spikes(0.3 + 0.4 * torch.rand(3, 64, generator=rng), 0.05, torch.full((3,), 3.0))
    return energy, energy.sample(300, rng)


def spikes_64() -> Target:
    energy, data = spikes()
    return Target(energy, Box(0, 1, (64,)), None, energy.log_z, data)


def spikes_64_both_ways() -> Target:
    """No data, but exact draws for the bound from above."""
    energy, _ = spikes()
    estimate = functools.partial(anneal_both_ways, draw=energy.sample)
    return Target(energy, Box(0, 1, (64,)), None, energy.log_z, estimate=estimate)


def own_biases(rbm: RBM) -> Target:
    return Target(rbm, rbm.support, None, rbm.log_z, estimate=anneal_rbm)


def rbm_20() -> Target:
    """20 hidden units, the size of a small RBM of MNIST, with one more phase that own biases do not find."""
    roughness = 0.1 * torch.randn(200, 20, generator=make_generator(0, "roughness"))
    return own_biases(two_phases(200, 20, 0.3, 14.0, roughness))


def rbm_from_data() -> Target:
    """As rbm-60x10, but annealed from the mean of data."""
    rbm = two_phases(60, 10, 0.6, 5.0)
    return Target(rbm, rbm.support, None, rbm.log_z, rbm.sample(300, make_generator(0, "rbm")), anneal_rbm)


def narrow(std: float) -> Target:
    """By quadrature."""

    def energy(x: Tensor) -> Tensor:
        return half_square(x.double() / std)

    return Target(energy, SQUARE, None, 2 * (math.log(std) + LOG_ROOT_TWO_PI), estimate=compute)


def gaussian_on_box() -> Target:
    """An energy with a Gaussian reference, asked on a box."""
    layer = nn.Linear(2, 3)
    nn.init.constant_(layer.weight, 0.5)
    nn.init.zeros_(layer.bias)
    energy = JointEnergy(layer, Gaussian(0.0, 1.0, (2,)))
    return Target(energy, SQUARE, None, quadrature(energy, SQUARE, 2048), estimate=compute)


def square_on_box(proposal: Normal) -> Target:
    """x^2 on [-1, 1]^2 with an unsuitable proposal."""
    truth = 2 * math.log(math.sqrt(math.pi) * math.erf(1))
    return Target(lambda x: x.square().sum(1), SQUARE, proposal, truth)


def many_well(wells: int, proposal_std: float = 1.0) -> Target:
    """Independent double wells x^4 - 6 x^2 - x / 2 in the first of two components each, as in FAB (Midgley 2023)."""

    def energy(x: Tensor) -> Tensor:
        a, b = x[:, ::2], x[:, 1::2]
        return (a**4 - 6 * a.square() - a / 2 + b.square() / 2).sum(1)

    axis = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    well = float((-(axis**4) + 6 * axis**2 + axis / 2).logsumexp(0)) + math.log(12 / 200_000)
    truth = wells * (well + LOG_ROOT_TWO_PI)
    return Target(energy, Euclidean((2 * wells,)), normal(2 * wells, proposal_std), truth)


def gmm_40() -> Target:
    """40 Gaussians in [-40, 40]^2, from N(0, 5^2), which covers few of them."""
    means = 80 * torch.rand(40, 2, generator=make_generator(0, "gmm")) - 40
    energy = mixture(means, 1.313)
    return Target(energy, energy.support, normal(2, 5.0), 0.0)


def linear(dimensions: int, std: float, label: int | None = None, **budget: int) -> Target:
    """Ten linear logits on [-1, 1]^D. With ``label``, log Z of that class is wanted."""
    rng, layer, box = make_generator(0, "linear"), nn.Linear(dimensions, 10), Box(-1, 1, (dimensions,))
    with torch.no_grad():
        layer.weight.copy_(std * torch.randn(10, dimensions, generator=rng))
        layer.bias.copy_(torch.randn(10, generator=rng))
    energy = JointEnergy(layer, box)
    exact = exact_log_z(energy, box)
    if label is None or exact.per_class is None:
        return Target(energy, box, None, exact.log_z, budget=budget)
    truth = float(exact.per_class.sort().values[label])
    estimate = functools.partial(anneal_class, label=int(exact.per_class.argsort()[label]))
    return Target(energy, box, None, truth, estimate=estimate, budget=budget)


def rare_class() -> Target:
    """log Z_y of a class of weight 1e-6 at distance 6."""
    energy = mixture(torch.tensor([[0.0, 0.0], [6.0, 0.0]]), 1.0, torch.tensor([1 - 1e-6, 1e-6]))
    estimate = functools.partial(anneal_class, label=1)
    return Target(energy, energy.support, normal(2, 2.0), math.log(1e-6), estimate=estimate)


def one_label() -> Target:
    """functools.partial(energy, y=one label) is E(x, y) of that label for all chains."""
    energy = linear(4, 1.0).energy
    assert isinstance(energy, JointEnergy)
    per_class = exact_log_z(energy, energy.support).per_class
    assert per_class is not None
    return Target(functools.partial(energy, y=torch.tensor([3])), energy.support, None, float(per_class[3]))


def untrained(dimensions: int) -> Target:
    """A new network on a standard normal reference. The truth is a mean over 40 000 draws, good to .002 nat."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(dimensions, 10).eval()
    support = Gaussian(0.0, 1.0, (dimensions,))
    with torch.no_grad():
        parts = [net(support.sample(10_000, generator=make_generator(k, "draws"))).logsumexp(1) for k in range(4)]
    truth = float(torch.cat(parts).double().logsumexp(0)) - math.log(40_000)
    return Target(JointEnergy(net, support), support, None, truth)


def training_closure() -> Target:
    """A lambda over a network in training mode, with batch norm and dropout. The truth is that of eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 32), nn.BatchNorm1d(32), nn.SiLU(), nn.Dropout(0.5), nn.Linear(32, 5))
        net(3 * torch.randn(512, 2))  # running statistics

    def energy(x: Tensor) -> Tensor:
        return -net(x).logsumexp(1)

    net.eval()
    truth = quadrature(lambda x: -net(x).logsumexp(1), SQUARE)
    net.train()
    return Target(energy, SQUARE, None, truth, estimate=functools.partial(anneal_unchanged, module=net))


def offset(constant: float, dimensions: int) -> Target:
    """constant + |x|^2 / 2 in float32."""
    truth = dimensions * LOG_ROOT_TWO_PI - constant
    return Target(lambda x: constant + half_square(x), Euclidean((dimensions,)), normal(dimensions, 2.0), truth)


def walled() -> Target:
    """|x|^2 / 2 on [-1, 1]^2 where x_1 > 0, and infinite elsewhere."""

    def energy(x: Tensor) -> Tensor:
        return half_square(x).masked_fill(x[:, 0] <= 0, math.inf)

    return Target(energy, SQUARE, None, 2 * (math.log(math.erf(0.5**0.5)) + LOG_ROOT_TWO_PI) - math.log(2))


def peak_in_box(dimensions: int, degrees_of_freedom: float, half_width: float) -> Target:
    """Student's t in a box that is much wider, from the uniform density."""
    box = Box(-half_width, half_width, (dimensions,))
    density = StudentT(torch.zeros(dimensions), torch.ones(dimensions), degrees_of_freedom, box)
    return Target(lambda x: -density.log_prob(x), box, None, 0.0)


def infinite(energy: Energy, dimensions: int = 2) -> Target:
    return Target(energy, Euclidean((dimensions,)), normal(dimensions), math.inf)


def on_space(energy: Student | Valley | Funnel | Shells, proposal_std: float) -> Target:
    """The energy on R^D, from N(0, proposal_std^2), without data."""
    space = Euclidean((energy.dimensions,))
    return Target(energy, space, normal(energy.dimensions, proposal_std), energy.log_z)


def rotated(std: Tensor, **budget: int) -> Target:
    """A rotated Gaussian, from N(0, 1)."""
    energy = RotatedGaussian(std)
    return Target(energy, Euclidean((len(std),)), normal(len(std)), energy.log_z, budget=budget)


def quartic(dimensions: int, estimate: Estimator = anneal) -> Target:
    """The sum of x^4, which is flat at its mode."""

    def energy(x: Tensor) -> Tensor:
        return (x**4).sum(1)

    truth = dimensions * (math.log(2) + math.lgamma(1.25))
    return Target(energy, Euclidean((dimensions,)), normal(dimensions), truth, estimate=estimate)


def tail(x: Tensor) -> Tensor:
    """Its exp(-E) falls as |x_1|^-.9, so Z is infinite."""
    return 0.45 * x[:, 0].square().log1p() + half_square(x[:, 1:])


def pole(x: Tensor) -> Tensor:
    """exp(-E) = |x|^-3 has an infinite integral in a box of two dimensions."""
    return 1.5 * x.square().sum(1).log()


def logits_without_walls() -> Target:
    """The logsumexp of a network with ReLU on R^D grows along some direction."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 10))
    return infinite(JointEnergy(net, Euclidean((10,))), 10)


def reverse_tail() -> Target:
    def draw(n: int, generator: torch.Generator) -> Tensor:
        return normal(2).sample(n, generator=generator)

    return replace(infinite(tail), estimate=functools.partial(reverse, draw=draw))


def student_both_ways() -> Target:
    energy = Student(10, 1)
    return replace(on_space(energy, 1.0), estimate=functools.partial(anneal_both_ways, draw=energy.sample))
