"""Adding h(x) to every logit leaves the classifier unchanged and multiplies the density by exp(h(x))."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebm_lightning import Box, ConditionalEBM, Gaussian, JointEnergy, exact_log_z
from ebm_lightning.networks import MLP
from ebm_lightning.partition import quadrature
from ebm_lightning.partition.exact import grid

BOX = Box(-1, 1, (2,))


class Shifted(nn.Module):
    """f(x) + h(x), where h is another network."""

    def __init__(self, classifier: nn.Module, h: nn.Module) -> None:
        super().__init__()
        self.classifier, self.h = classifier, h

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x) + self.h(x)


def random_pair(number: int) -> tuple[nn.Module, nn.Module]:
    """A classifier and a random h: rough, smooth or linear, small or far larger than the logits."""
    torch.manual_seed(number)
    h = [MLP(2, 1, (16,)), nn.Linear(2, 1), nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))][number % 3]
    with torch.no_grad():
        for p in h.parameters():
            p.mul_(10 ** (number % 3 - 1))
    return MLP(2, 4, (16,)).double(), h.double()


@pytest.mark.parametrize("number", range(12))
def test_classifier_loss_and_gradient_do_not_change(number):
    net, h = random_pair(number)
    x, y = torch.rand(32, 2, dtype=torch.float64) * 2 - 1, torch.randint(4, (32,))
    results = []
    for classifier in (net, Shifted(net, h)):
        module = ConditionalEBM(classifier, 4, BOX)
        loss = module.conditional_loss(module(x), y)
        gradient = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
        results.append((module.energy.logits(x).softmax(1), loss, torch.cat([g.flatten() for g in gradient])))
    for plain, shifted in zip(*results, strict=True):
        assert torch.allclose(plain, shifted, rtol=1e-9, atol=1e-10)
    (of_h,) = torch.autograd.grad(results[1][1], next(h.parameters()))
    assert float(of_h.abs().max()) < 1e-10, "cross-entropy does not train h"


@pytest.mark.parametrize("number", range(4))
def test_log_z_changes_by_the_mean_of_exp_h(number):
    """log Z' - log Z = log E_p[e^h], and log Z_y' - log Z_y = log E_p(x|y)[e^h]."""
    net, h = random_pair(number)
    net, h = net.float(), h.float()
    plain, shifted = JointEnergy(net, BOX), JointEnergy(Shifted(net, h), BOX)
    x = grid(BOX, 512)
    with torch.no_grad():
        tilt, log_p = h(x)[:, 0].double(), (-plain(x)).double().log_softmax(0)
        log_p_y = (plain.logits(x).double().log_softmax(1) + log_p[:, None]).log_softmax(0)  # of p(x|y) on the grid
    moved = quadrature(shifted, BOX) - quadrature(plain, BOX)
    assert moved == pytest.approx(float((log_p + tilt).logsumexp(0)), abs=1e-3)
    by_class = exact_log_z(shifted, BOX).per_class - exact_log_z(plain, BOX).per_class
    assert torch.allclose(by_class, (log_p_y + tilt[:, None]).logsumexp(0), atol=1e-3)


def test_p_of_x_becomes_p_times_exp_h():
    net, h = random_pair(1)
    x = torch.rand(16, 2, dtype=torch.float64)
    plain, shifted = JointEnergy(net, BOX), JointEnergy(Shifted(net, h), BOX)
    assert torch.allclose(plain(x) - shifted(x), h(x)[:, 0])
    y = torch.arange(16) % 4
    assert torch.allclose(plain(x, y) - shifted(x, y), h(x)[:, 0])


def test_a_reference_density_is_an_h():
    """A Gaussian support is the model on a box with h = log q: p(y|x) is equal, and E(x) differs by log q."""
    net, _ = random_pair(2)
    x = torch.rand(16, 2, dtype=torch.float64)
    support = Gaussian(0.3, 0.5, (2,))
    tilted, flat = JointEnergy(net, support), JointEnergy(net, BOX)
    assert torch.equal(tilted.logits(x).softmax(1), flat.logits(x).softmax(1))
    assert torch.allclose(flat(x) - tilted(x), support.log_q(x))


def test_adding_a_constant_adds_it_to_log_z():
    net, _ = random_pair(3)
    net = net.float()
    constant = JointEnergy(Plus(net, 2.5), BOX)
    assert quadrature(constant, BOX) == pytest.approx(quadrature(JointEnergy(net, BOX), BOX) + 2.5, abs=1e-5)
    x = torch.rand(3, 2)
    assert torch.allclose(F.softmax(net(x), 1), constant.logits(x).softmax(1), atol=1e-6)


class Plus(nn.Module):
    def __init__(self, net: nn.Module, c: float) -> None:
        super().__init__()
        self.net, self.c = net, c

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.c
