"""Contracts of log Z: arguments of the right kind, and energies that are one number for each x.

Each test fails where its check is left out: log Z was wrong, or the error came from deep inside torch.
"""

import functools
import math

import pytest
import torch
from torch import nn

from ebm_lightning.energies import GaussianEnergy, JointEnergy, MixtureLogits
from ebm_lightning.networks import MLP
from ebm_lightning.partition import Normal, ais, quadrature, reverse_ais
from ebm_lightning.partition.diagnostics.energy_checks import (
    POINTS,
    check_energy,
    checked_arguments,
    imprecise,
    rounding_error,
)
from ebm_lightning.rng import make_generator
from ebm_lightning.samplers import GHMC, HMC, PYLD, SGLD
from ebm_lightning.supports import Binary, Box, Euclidean, Gaussian

BOX, PLANE = Box(-2, 2, (2,)), Euclidean((2,))
DEFAULTS = {"proposal": None, "kernel": None, "temperatures": 5, "schedule": "adaptive", "generator": None}
SMALL = {"temperatures": 60, "num_chains": 400}
WIDE = Normal(torch.zeros(2), torch.full((2,), 2.0))


def square(x):
    return 0.5 * x.square().sum(1)


def noisy_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 3)).train()


# F10: closures over modules in train mode, and energies that are not functions of each row.


def test_a_closure_over_a_module_in_train_mode_is_evaluated_in_eval_mode(seed):
    net = noisy_net()
    state, rng = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    result = ais(lambda x: -net(x).logsumexp(1), BOX, **SMALL, generator=make_generator(seed, "ais"))
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    assert all(m.training for m in net.modules())
    truth = quadrature(lambda x: -net.eval()(x).logsumexp(1), BOX)
    assert abs(result.log_z - truth) < 5 * result.std_err + 1e-3


@pytest.mark.parametrize("support", [BOX, Gaussian(0.0, 1.0, (2,))], ids=["box", "gaussian"])
@pytest.mark.parametrize("offset", [0.0, 1e5])
@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (lambda x: 0.1 * torch.randn(len(x)), "'energy' should depend on x alone"),
        (lambda x: 0.1 * torch.randn(()), "'energy' should depend on x alone"),
        (lambda x: nn.functional.dropout(x, 0.1).sum(1), "'energy' should depend on x alone"),
        (lambda x: square(x - x.mean(0)) - square(x), "'energy' should treat each row separately"),
        (lambda x: 0.1 * torch.arange(len(x)), "'energy' should treat each row separately"),
        (lambda x: torch.zeros(len(x)) + x.sum().detach(), "'energy' should treat each row separately"),
    ],
)
def test_an_energy_that_depends_on_more_than_each_row_is_refused(support, offset, noise, message, seed):
    with pytest.raises(ValueError, match=message):
        checked_arguments(lambda x: offset + square(x) + 10 * noise(x), support, **DEFAULTS)


def test_noise_is_seen_in_an_energy_that_is_steep(seed):
    """Kills: a tolerance relative to the spread of the energies for repeated calls."""
    with pytest.raises(ValueError, match="'energy' should depend on x alone"):
        checked_arguments(lambda x: 1e5 * square(x) + torch.randn(len(x)), BOX, **DEFAULTS)


@pytest.mark.parametrize(
    "kind", ["float32", "bfloat16 autocast", "steep", "double", "batch norm", "constant", "large", "split"]
)
def test_rounding_is_not_taken_for_noise(kind, seed):
    energies = {
        "float32": JointEnergy(MLP(2, 10, (256, 256)), BOX),
        "bfloat16 autocast": JointEnergy(MLP(2, 10, (256, 256)), BOX),
        "steep": lambda x: 1e6 * square(x),
        "double": lambda x: square(x.double()),
        "batch norm": JointEnergy(noisy_net(), BOX),
        "constant": lambda x: 0 * x.sum(1) + 3,
        "large": lambda x: 1e9 + square(x),
        "split": lambda x: square(x) + 1e-5 * len(x),
    }
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bfloat16 autocast"):
        start, evaluations = checked_arguments(energies[kind], BOX, **DEFAULTS)
    assert start is BOX
    assert evaluations == 3 * POINTS


def test_a_check_evaluates_no_more_rows_at_once_than_a_chunk():
    rows = []

    def energy(x):
        rows.append(len(x))
        return square(x)

    _, evaluations = checked_arguments(energy, BOX, **DEFAULTS, chunk_size=3)
    assert max(rows) == 3
    assert evaluations == sum(rows)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_checks_leave_modules_and_random_numbers_as_they_are(mode):
    energy, rng, generator = JointEnergy(noisy_net(), BOX), torch.get_rng_state(), make_generator(0)
    state, own = {k: v.clone() for k, v in energy.state_dict().items()}, generator.get_state()
    with mode():
        checked_arguments(energy, BOX, **{**DEFAULTS, "generator": generator})
    assert torch.equal(rng, torch.get_rng_state())
    assert torch.equal(own, generator.get_state())
    assert all(torch.equal(v, state[k]) for k, v in energy.state_dict().items())
    assert all(m.training and all(p.requires_grad and p.grad is None for p in m.parameters()) for m in energy.modules())


# F11: labels.


def test_log_z_of_one_class_by_a_label_of_length_one(seed):
    """All chains had the energy of the first chain."""
    energy = JointEnergy(MixtureLogits(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), 0.8, torch.tensor([0.9, 0.1])), PLANE)
    for k, truth in enumerate([0.9, 0.1]):
        of_class = functools.partial(energy, y=torch.tensor([k]))
        result = ais(of_class, PLANE, proposal=WIDE, **SMALL, generator=make_generator(seed, "ais"))
        assert abs(result.log_z - math.log(truth)) < 5 * result.std_err + 1e-3


def test_labels_of_another_number_of_chains_are_refused():
    energy = JointEnergy(MixtureLogits(torch.zeros(2, 2)), PLANE)
    with pytest.raises(ValueError, match=r"'y' should have shape \(32,\), one label for each x, or \(1,\)"):
        checked_arguments(functools.partial(energy, y=torch.arange(10) % 2), PLANE, **{**DEFAULTS, "proposal": WIDE})


# F12: rounding.


def test_energies_with_a_large_offset_are_imprecise():
    """1e9 + x^2 / 2 in float32 gave log Z too high by 10.6 nats, and was reliable."""
    x = BOX.sample(50, generator=make_generator(0))
    offset = 1e9 + square(x)
    assert rounding_error(offset) == pytest.approx(119, rel=0.01)
    assert rounding_error(offset.double()) == rounding_error(offset), "float32 numbers stored in float64"
    assert rounding_error(1e9 + square(x.double())) < 1e-6
    assert rounding_error(300 + square(x), torch.bfloat16) > 1
    assert rounding_error(torch.tensor([1.0, math.inf, 2.0])) < 1e-6
    assert rounding_error(torch.tensor([math.inf])) == 0
    assert "subtract a constant" in imprecise(rounding_error(offset))
    assert imprecise(rounding_error(300 + square(x))) == ""


def test_a_large_offset_is_not_reliable(seed):
    result = ais(lambda x: 1e9 + square(x), BOX, **SMALL, generator=make_generator(seed, "ais"))
    assert "rounding changes them" in result.why
    exact = ais(lambda x: 1e9 + square(x.double()), BOX, **SMALL, generator=make_generator(seed, "ais"))
    assert exact.reliable
    assert abs(exact.log_z + 1e9 - quadrature(square, BOX)) < 5 * exact.std_err + 1e-3


def test_a_steep_energy_is_precise_although_it_is_huge_at_the_proposal(seed):
    narrow = GaussianEnergy(torch.zeros(2), torch.full((2,), 1e-3))
    result = ais(narrow, BOX, temperatures=250, num_chains=400, generator=make_generator(seed, "ais"))
    assert "rounding" not in result.why


# F13: what an energy returns.


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (lambda x: square(x)[:, None], r"shape \(32,\) for x of shape \(32, 2\), got \(32, 1\). Call .squeeze\(1\)"),
        (lambda x: square(x).sum(), r"got \(\). Sum over the components of each x"),
        (MLP(2, 3), r"got \(32, 3\). .* use JointEnergy"),
        (lambda x: x.square().sum(0), r"got \(2,\). Sum over the components"),
        (lambda x: x.square().sum(1).repeat(2), r"got \(64,\)"),
        (lambda x: 3.0, r"'energy' should return a tensor of shape \(32,\), got float"),
        (lambda x: square(x).long(), "'energy' should return floating point numbers, got torch.int64"),
        (lambda x: x.detach().sum(1), "'energy' should be differentiable in x"),
        (lambda x: square(x) * math.nan, "got NaN or -inf at 32 of 32 points"),
        (lambda x: square(x) + (x[:, 0] - 1).log(), "got NaN or -inf"),
        (lambda x: torch.where(x[:, 0] > 1, -math.inf, square(x)), "got NaN or -inf"),
        (lambda x: square(x) + math.inf, r"got \+inf at all 32 points. Use a proposal"),
        (
            MLP(2, 1).double(),
            "should accept x in torch.float32, .* got weights in torch.float64. Convert the module by",
        ),
        (MLP(2, 1).bfloat16(), "got weights in torch.bfloat16"),
        (JointEnergy(MLP(2, 3), Box(-1, 1, (2,))), r"'support' should be that of the energy, Box\(-1, 1\)"),
        (0.5, "'energy' should be callable, got 0.5"),
    ],
)
def test_energies_that_are_refused(energy, message):
    with pytest.raises(ValueError, match=message):
        checked_arguments(energy, BOX, **DEFAULTS)


def test_errors_inside_the_energy_are_shown_as_they_are():
    """Kills: a check of the shape at one batch size only. The sum over the batch has shape (D,), here (32,)."""
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        checked_arguments(MLP(3, 1), BOX, **DEFAULTS)
    with pytest.raises(ValueError, match=r"got \(32,\)"):
        check_energy(lambda x: x.square().sum(0), torch.rand(32, 32))


def test_remedies_for_other_precisions_work(seed):
    torch.manual_seed(seed)
    net = MLP(2, 3, (8,))
    truth = quadrature(JointEnergy(net, BOX), BOX)
    double = JointEnergy(net.double(), BOX)
    result = ais(lambda x: double(x.double()), BOX, **SMALL, generator=make_generator(seed, "ais"))
    assert abs(result.log_z - truth) < 5 * result.std_err + 1e-3
    half = MLP(2, 3, (8,)).bfloat16()
    checked_arguments(lambda x: -half(x.to(torch.bfloat16)).float().logsumexp(1), BOX, **DEFAULTS)


# F13: kinds of arguments.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel": SGLD(0.1, 0.1, 5)}, r"'kernel' should be GHMC\(\), .* got SGLD. It has no acceptance step"),
        ({"kernel": PYLD(0.1, 0.1, 5)}, "got PYLD. It has no acceptance step"),
        ({"kernel": GHMC}, r"got the class GHMC. Create an instance: GHMC\(\)"),
        ({"kernel": "hmc"}, r"got 'hmc'. Use GHMC\(\)"),
        ({"generator": 0}, r"'generator' should be a torch.Generator or None, got 0. Use torch.Generator"),
        ({"schedule": "quadratic"}, "'schedule' should be one of 'adaptive', 'linear', 'sigmoid', got 'quadratic'"),
        ({"temperatures": 250.0}, "'temperatures' should be an integer or None, got 250.0"),
        ({"temperatures": True}, "'temperatures' should be an integer"),
        ({"proposal": torch.distributions.Normal(0, 1)}, "'proposal' should be a Density .*got torch.distributions"),
        ({"proposal": Normal}, "'proposal' should be a Density .*got the class Normal"),
        ({"proposal": torch.zeros(2)}, "'proposal' should be a Density .*got torch.Tensor"),
        ({"support": (-1, 1)}, r"'support' should be a Support such as Box\(low, high, shape\), got \(-1, 1\)"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(arguments, message):
    arguments = {"support": BOX, **arguments}
    with pytest.raises(ValueError, match=message):
        ais(square, **arguments)
    with pytest.raises(ValueError, match=message):
        reverse_ais(square, samples=torch.rand(4, 2), exact=False, **arguments)


@pytest.mark.parametrize("kernel", [None, GHMC(), HMC(0.1, 3)])
def test_arguments_of_the_right_kind_are_accepted(kernel):
    for schedule in ("adaptive", "linear", "sigmoid"):
        checked_arguments(square, BOX, **{**DEFAULTS, "kernel": kernel, "schedule": schedule})
    checked_arguments(GaussianEnergy(torch.zeros(2), torch.ones(2)).forward, BOX, **DEFAULTS)
    with pytest.raises(ValueError, match="'num_chains' should be an integer, got 1000"):
        ais(square, BOX, num_chains=1e3)
    assert checked_arguments(square, Binary((2,)), **DEFAULTS)[1] == 0
