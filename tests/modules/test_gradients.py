"""The gradient of the generative term against that of the exact likelihood, with Z from quadrature on a 1-D grid.

The negatives are exact samples (even quantiles through the inverse distribution function), so that only the loss is
tested. Mutants killed: a wrong sign, negatives that are not detached, labels of the negative phase drawn uniformly, a
sum instead of the mean, E(x) instead of E(x, y).
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ebm_lightning import JEM, Box, SupportInit
from ebm_lightning.networks import MLP
from ebm_lightning.samplers import Sampler, State

BOX = Box(-2, 2, (1,))
GRID = torch.linspace(-2, 2, 4002, dtype=torch.float64)[:, None]
N = 4000


class Exact(Sampler):
    """Samples of exp(-E) on the box at even quantiles, by its inverse distribution function, for each label."""

    steps = 1

    def transitions(self, energy, x, support, generator):
        x = x.double()
        for label in labels_of(energy, len(x)).unique():
            rows = labels_of(energy, len(x)) == label
            x[rows] = self.quantiles(lambda g, label=label: at_label(energy, label)(g), int(rows.sum()))
        yield State(x, x[:, 0], x)

    def quantiles(self, energy: Callable[[Tensor], Tensor], n: int) -> Tensor:
        middle = (GRID[1:] + GRID[:-1]) / 2
        mass = (-energy(middle)).softmax(0).cumsum(0)
        u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        cell = torch.searchsorted(mass, u).clamp(max=len(middle) - 1)
        below = torch.cat([torch.zeros(1), mass])[cell]
        return GRID[cell] + ((u - below) / (mass[cell] - below))[:, None] * (GRID[1] - GRID[0])


def labels_of(energy, n: int) -> Tensor:
    return energy.keywords["y"] if hasattr(energy, "keywords") else torch.zeros(n).long()


def at_label(energy, label: Tensor) -> Callable[[Tensor], Tensor]:
    if not hasattr(energy, "keywords"):
        return energy
    return lambda x: energy.func(x, label.expand(len(x)))


def jem(**weights: float) -> JEM:
    torch.set_default_dtype(torch.float64)
    try:
        net = MLP(1, 3, (16, 16))
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2.5)  # a density far from uniform
    weights = {"generative_weight": 0.0} | weights
    module = JEM(net, 3, BOX, Exact(), SupportInit(), seed=0, **{"energy_l2": 0.0, **weights})
    module.start_chains()
    return module


def generative_term(module: JEM, x: Tensor, y: Tensor) -> Tensor:
    return module.loss_terms(x, y)["gen"][1]


def gradient(loss: Tensor, module: JEM) -> Tensor:
    grads = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(module.parameters(), grads, strict=True)]
    )


def log_z(module: JEM, y: int | None = None) -> Tensor:
    """Midpoint rule, differentiable."""
    middle = (GRID[1:] + GRID[:-1]) / 2
    label = None if y is None else torch.full((len(middle),), y)
    return (-module.energy(middle, label)).logsumexp(0) + math.log(4 / len(middle))


def data(seed: int) -> tuple[Tensor, Tensor]:
    x = torch.rand(N, 1, dtype=torch.float64) * 2 - 1.5
    return x, (x[:, 0] > -0.5).long() + (x[:, 0] > 0.2).long()


@pytest.fixture
def xy(seed) -> tuple[Tensor, Tensor]:
    return data(seed)


def exact_loss(module: JEM, x: Tensor, y: Tensor, term: str) -> Tensor:
    """-log p(x), -log p(x, y) or -log p(x|y), mean over the batch."""
    if term == "generative_weight":
        return module.energy(x).mean() + log_z(module)
    if term == "joint_weight":
        return module.energy(x, y).mean() + log_z(module)
    return (module.energy(x, y) + torch.stack([log_z(module, k) for k in range(3)])[y]).mean()


TERMS = ["generative_weight", "joint_weight", "class_conditional_weight"]


@pytest.mark.parametrize("term", TERMS)
def test_each_term_has_the_gradient_of_its_likelihood(term, xy):
    module = jem(**{term: 1.0})
    exact = gradient(exact_loss(module, *xy, term), module)
    ours = gradient(generative_term(module, *xy), module)
    assert exact.norm() > 0.1
    assert (ours - exact).norm() < 0.005 * exact.norm()


def test_terms_are_weighted(xy):
    weights = dict(zip(TERMS, (0.5, 2.0, 3.0), strict=True))
    module = jem(**weights)
    exact = sum(w * gradient(exact_loss(module, *xy, t), module) for t, w in weights.items())
    assert (gradient(generative_term(module, *xy), module) - exact).norm() < 0.005 * exact.norm()


def test_cross_entropy_and_log_p_x_sum_to_log_p_x_y(xy):
    module = jem(generative_weight=1.0)
    terms = module.loss_terms(*xy)
    ours = gradient(terms["clf"][1] + terms["gen"][1], module)
    exact = gradient(exact_loss(module, *xy, "joint_weight"), module)
    assert (ours - exact).norm() < 0.005 * exact.norm()


def test_energy_l2_is_the_mean_square_of_both_phases(xy):
    plain, penalized = jem(generative_weight=1.0), jem(generative_weight=1.0, energy_l2=0.1)
    penalized.load_state_dict(plain.state_dict())
    x, y = xy
    x_neg = plain.negatives(x)
    extra = generative_term(penalized, x, y) - generative_term(plain, x, y)
    expected = 0.1 * (plain.energy(x).square().mean() + plain.energy(x_neg).square().mean())
    torch.testing.assert_close(extra, expected)


@pytest.mark.parametrize(("weight", "a"), [(1.0, 0.1), (2.0, 0.5)])
def test_energy_l2_bounds_the_generative_term_from_below(weight, a, xy):
    """w E_pos - w E_neg + a (E_pos^2 + E_neg^2) >= -w^2 / 2a for any network, so that energies cannot diverge."""
    for scale in (0.1, 1.0, 10.0, 100.0):
        for sign in (-1, 1):
            module = jem(generative_weight=weight, energy_l2=a)
            with torch.no_grad():
                module.classifier.layers[-1].weight.mul_(sign * scale)
            assert generative_term(module, *xy).item() >= -(weight**2) / (2 * a)


def shuffled_labels(module: JEM, x: Tensor, y: Tensor) -> Tensor:
    return generative_term(module, x, y[torch.randperm(len(y))])


def marginal_energy(module: JEM, x: Tensor, y: Tensor) -> Tensor:
    module.generative_weight, module.joint_weight = 1.0, 0.0
    return generative_term(module, x, y)


MUTANTS = {
    "sign of the loss": ("generative_weight", lambda m, x, y: -generative_term(m, x, y)),
    "sum over the batch": ("generative_weight", lambda m, x, y: generative_term(m, x, y) * len(x)),
    "no negative phase": ("generative_weight", lambda m, x, y: m.energy(x).mean()),
    "uniform negatives": ("generative_weight", lambda m, x, y: (m.energy(x) - m.energy(BOX.sample(N).double())).mean()),
    "E(x) for E(x, y)": ("joint_weight", marginal_energy),
    "labels shuffled": ("class_conditional_weight", shuffled_labels),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_exact_gradient_kills(mutant, xy):
    term, loss = MUTANTS[mutant]
    module = jem(**{term: 1.0})
    exact = gradient(exact_loss(module, *xy, term), module)
    assert (gradient(loss(module, *xy), module) - exact).norm() > 0.05 * exact.norm()


def test_negatives_carry_no_gradient(xy):
    assert not jem(generative_weight=1.0).negatives(xy[0]).requires_grad
