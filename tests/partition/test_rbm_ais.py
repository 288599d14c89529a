"""log Z of classification RBMs: annealing against sums over all states."""

import functools
import re

import pytest
import torch

from ebm_lightning import Binary, ClassificationRBM, Gaussian, JointEnergy, ais, exact_log_z
from ebm_lightning.networks import MLP
from ebm_lightning.partition import classification_rbm_ais, rbm_class_log_z
from ebm_lightning.partition.binary_rbm import BinaryRBM
from ebm_lightning.rbm import RBMLogits
from ebm_lightning.rng import make_generator
from tests.conftest import z_score


def model(visible: int = 12, hidden: int = 8, classes: int = 4, scale: float = 0.7) -> JointEnergy:
    support = Binary((visible,))
    net = RBMLogits(visible, hidden, classes, support)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=scale)
    return JointEnergy(net, support)


def test_annealing_gives_log_z_and_log_z_of_each_class(seed):
    energy = model()
    exact = exact_log_z(energy, energy.support)
    result = classification_rbm_ais(
        energy, data_mean=torch.rand(12), temperatures=300, num_chains=400, generator=make_generator(seed, "rbm")
    )
    assert abs(result.log_z - exact.log_z) < 5 * result.std_err + 1e-3
    assert result.std_err < 0.05
    assert torch.allclose(result.per_class, exact.per_class, atol=0.3)
    assert float(result.per_class.logsumexp(0)) == pytest.approx(result.log_z)


@pytest.mark.parametrize("temperatures", [1, 3])
def test_weights_are_unbiased_with_few_temperatures(temperatures, seed):
    """E[w] = Z and E[w p(y|x)] = Z_y for any path. Kills: a base with another log Z, labels drawn from p_1 in place of
    p_beta, hidden units at beta = 1, fields of x at the wrong beta, weights at the new x."""
    energy = model(6, 4, 3, 0.6)
    truth = exact_log_z(energy, energy.support)
    result = classification_rbm_ais(
        energy,
        data_mean=torch.full((6,), 0.4),
        temperatures=temperatures,
        num_chains=40_000,
        generator=make_generator(seed, "rbm"),
    )
    assert z_score((result.log_weights - truth.log_z).exp(), 1.0) < 5
    z_y = (result.per_class - truth.per_class).exp()
    assert torch.allclose(z_y, torch.ones_like(z_y), atol=0.1)


def test_a_sweep_preserves_each_intermediate_distribution(seed):
    """From exact draws of p_beta, one sweep at beta gives exact draws of p_beta."""
    torch.manual_seed(seed)
    normal = functools.partial(torch.randn, dtype=torch.float64)
    machine = BinaryRBM(normal(4, 3), normal(3, 2), normal(4), normal(3), normal(2), normal(4), normal(2))
    states = (torch.arange(16)[:, None] >> torch.arange(4) & 1).double()
    p = machine.log_p(0.6, states, machine.hidden_fields(states)).logsumexp(1).softmax(0)
    generator, n = make_generator(seed, "sweep"), 100_000
    v = states[torch.multinomial(p, n, replacement=True, generator=generator)]
    fields = machine.hidden_fields(v)
    v = machine.sweep(0.6, fields, machine.log_p(0.6, v, fields), generator)
    counts = torch.bincount((v.long() * 2 ** torch.arange(4)).sum(1), minlength=16)
    assert float(((counts - n * p) / (n * p * (1 - p)).sqrt()).abs().max()) < 5


def test_the_default_base_rates_are_those_of_the_training_data():
    made = ClassificationRBM(12, 8, 4)
    with pytest.raises(ValueError, match="'data_mean' should be given for an RBM that was not trained"):
        classification_rbm_ais(made.energy)
    x = (torch.rand(100, 12) < 0.2).float()
    made.rbm.observe(x[:30], torch.zeros(30).long())
    made.rbm.observe(x[30:], torch.ones(70).long())
    assert torch.allclose(made.rbm.data_mean, x.mean(0), atol=1e-6)
    assert made.rbm.class_counts.tolist() == [30, 70, 0, 0]
    given, default = (
        classification_rbm_ais(made.energy, data_mean=mean, temperatures=3, generator=make_generator(0))
        for mean in (made.rbm.data_mean, None)
    )
    assert given.log_z == default.log_z


def test_ais_on_binary_anneals_by_block_gibbs(seed):
    module = ClassificationRBM(12, 8, 4)
    for p in module.rbm.parameters():
        torch.nn.init.normal_(p, std=0.7)
    module.rbm.observe((torch.rand(100, 12) < 0.4).float(), torch.randint(4, (100,)))
    exact = exact_log_z(module.energy, module.support)
    result = ais(module.energy, module.support, temperatures=300, num_chains=400, generator=make_generator(seed, "rbm"))
    assert abs(result.log_z - exact.log_z) < 5 * result.std_err + 1e-3
    assert result.std_err < 0.1
    assert torch.allclose(result.per_class, exact.per_class, atol=0.3)


def test_a_gaussian_rbm_by_annealing_with_hmc(seed):
    support = Gaussian([0.0, 1.0], [1.0, 0.5], (2,))
    net = RBMLogits(2, 3, 2, support)
    energy = JointEnergy(net, support)
    exact = exact_log_z(energy, support)
    result = ais(energy, support, temperatures=50, num_chains=400, generator=make_generator(seed))
    assert abs(result.log_z - exact.log_z) < 5 * result.std_err + 1e-3


def test_any_energy_on_few_binary_units():
    support = Binary((2, 3))
    energy = JointEnergy(torch.nn.Sequential(torch.nn.Flatten(), MLP(6, 3, (8,))), support)
    assert float(exact_log_z(energy, support).per_class.logsumexp(0)) == pytest.approx(
        exact_log_z(lambda x: energy(x), support).log_z, abs=1e-6
    )


def test_the_gradient_of_log_z_is_the_negative_phase():
    """d log Z / d b is the mean of x, by finite differences."""
    net = model(4, 3, 2).classifier
    rbm_class_log_z(net).logsumexp(0).backward()
    for parameter in (net.visible_bias, net.class_weight):
        flat, step = parameter.data.view(-1), 1e-3
        values = []
        for sign in (1, -2):
            flat[0] += sign * step
            values.append(rbm_class_log_z(net).logsumexp(0).item())
        flat[0] += step
        assert float(parameter.grad.view(-1)[0]) == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-3)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (
            lambda: rbm_class_log_z(RBMLogits(784, 30, 10)),
            "'units' should be at most 20, got 30. Summing 2^30 states would take about 4.68 hours on one CPU thread, "
            "and 6.27e+03 GiB of memory with a gradient. Use annealing: rbm_ais.",
        ),
        (lambda: exact_log_z(lambda x: x.sum(1), Binary((30,))), "'units' should be at most 20"),
        (
            lambda: classification_rbm_ais(lambda x: x.sum(1)),
            "'energy' should be that of a ClassificationRBM on Binary",
        ),
        (
            lambda: classification_rbm_ais(model(), data_mean=torch.rand(12), num_chains=5),
            "'num_chains' should be at least 20",
        ),
        (
            lambda: classification_rbm_ais(model(), data_mean=torch.rand(12), temperatures=0),
            "'temperatures' should be at least 1, got 0",
        ),
        (lambda: ais(model(), Binary((12,)), temperatures=2, num_chains=20), "'data_mean' should be given for an RBM"),
        (
            lambda: ais(model(), Binary((12,)), proposal=Binary((12,))),
            "'proposal' should be None on Binary, where annealing starts at base rates, got Binary. To choose them, "
            "pass 'data', or 'data_mean' to classification_rbm_ais.",
        ),
        (lambda: ais(lambda x: x.sum(1), Binary((12,))), "'energy' should be that of a ClassificationRBM on Binary"),
    ],
)
def test_errors(action, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        action()
