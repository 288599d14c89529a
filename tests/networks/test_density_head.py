"""DensityHead: class probabilities and log density with separate weights."""

import torch
import torch.nn.functional as F

from ebm_lightning.networks import DensityHead
from ebm_lightning.networks.density_head import best_temperature


def head() -> DensityHead:
    torch.manual_seed(0)
    made = DensityHead(5, 3, hidden=8)
    for layer in (made.single, made.pairs[-1]):
        torch.nn.init.normal_(layer.weight)
    return made


def test_the_model_begins_as_its_reference(seed):
    torch.testing.assert_close(DensityHead(5, 3)(torch.randn(7, 5)).logsumexp(1), torch.zeros(7))


def test_logsumexp_and_softmax_have_separate_weights(seed):
    """Mutants: without log_softmax; the density's weights in the class probabilities."""
    made, u = head(), torch.randn(7, 5)
    logits = made(u)
    torch.testing.assert_close(logits.logsumexp(1), made.log_ratio(u)[:, 0])
    torch.testing.assert_close(logits.softmax(1), made.conditional(u).softmax(1))
    logits.logsumexp(1).sum().backward()
    assert all(p.grad.abs().max() < 1e-5 for p in made.conditional.parameters())
    assert made.threshold.grad.abs().max() > 1e-3


def test_the_density_is_bounded():
    """Mutant: u itself among the inputs of g, which would make log Z infinite for some weights."""
    made = head()
    far = made.log_ratio(torch.randn(500, 5) * 1e6)
    assert far.abs().max() < 1e3


def test_temperature_is_that_of_the_labels(seed):
    logits = torch.randn(20_000, 3)
    y = torch.distributions.Categorical(logits=logits).sample()
    assert abs(best_temperature(logits * 2.5, y) - 2.5) < 0.2


def test_calibration_lowers_the_loss_and_leaves_the_density(seed):
    made, u = head(), torch.randn(500, 5)
    y = torch.distributions.Categorical(logits=3 * made(u).detach()).sample()
    before, ratio = F.cross_entropy(made(u), y).item(), made.log_ratio(u)
    assert 0.1 < made.calibrate(u, y) < 1
    assert F.cross_entropy(made(u), y).item() < before
    torch.testing.assert_close(made.log_ratio(u), ratio)


def test_the_temperature_of_perfect_predictions_is_bounded(seed):
    """Their best temperature is 0. Mutant: a search without bounds."""
    logits = torch.randn(50, 3)
    assert abs(best_temperature(logits, logits.argmax(1)) - 0.1) < 1e-3
