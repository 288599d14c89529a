"""Robustness on classifiers whose robust accuracy is known."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning import Box, ConditionalEBM, Robustness
from tests.callbacks.helpers import image_jem
from tests.helpers import batches, trainer


def test_attacks_on_a_linear_classifier_match_the_closed_form(tmp_path):
    """An image survives an L-inf attack if its margin is above eps |w|_1, far from the walls."""
    torch.manual_seed(0)
    net, box = nn.Linear(4, 2), Box(-9, 9, (4,))
    loader = batches(n=200, batch_size=64, classes=2)
    x, y = loader.dataset.tensors
    with torch.no_grad():
        net.weight.mul_(0.5)
        y.copy_(net(x).argmax(1))  # all correct, so that only the margin decides
        margins = (net(x)[:, 1] - net(x)[:, 0]).abs()
        w = net.weight[1] - net.weight[0]
    callback = Robustness([0.05, 0.2, 5.0], [0.3], [], steps=20, limit=None, directory=tmp_path)
    (metrics,) = trainer(tmp_path, callbacks=[callback]).test(ConditionalEBM(net, 2, box), loader, verbose=False)
    assert metrics["robust/clean"] == 1
    for eps in (0.05, 0.2):
        assert metrics[f"robust/linf_{eps:g}"] == pytest.approx(float((margins > eps * w.abs().sum()).float().mean()))
    assert metrics["robust/linf_5"] == 0
    assert metrics["robust/l2_0.3"] == pytest.approx(float((margins > 0.3 * w.norm()).float().mean()), abs=0.01)
    assert metrics["robust/images"] == 200
    assert (tmp_path / "robust-curves.png").exists()


def test_noise_on_a_linear_classifier_matches_the_gaussian_tail(tmp_path, seed):
    """A point at distance m from the decision boundary stays correct with probability Phi(m / std)."""
    net, box = nn.Linear(2, 2), Box(-99, 99, (2,))
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        net.bias.copy_(torch.tensor([0.0, 2.5]))
    n = 4000
    data = DataLoader(TensorDataset(torch.zeros(n, 2), torch.ones(n).long()), 1000)
    callback = Robustness([], [], [0.5, 1.0], limit=None, seed=seed)
    (metrics,) = trainer(tmp_path, callbacks=[callback]).test(ConditionalEBM(net, 2, box), data, verbose=False)
    for std in (0.5, 1.0):
        p = 0.5 * (1 + math.erf(0.5 / std / math.sqrt(2)))
        assert abs(metrics[f"robust/noise_{std:g}"] - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_accuracy_never_grows_with_the_radius(tmp_path):
    loader = batches(n=48, batch_size=20, shape=(1, 8, 8))
    callback = Robustness([0.3, 0.05, 0.1], [2.0, 0.5], [], steps=3, limit=30)
    (metrics,) = trainer(tmp_path, callbacks=[callback]).test(image_jem(), loader, verbose=False)
    found = [metrics[f"robust/{name}"] for name in ("clean", "linf_0.05", "linf_0.1", "linf_0.3")]
    assert found == sorted(found, reverse=True)
    assert metrics["robust/images"] == 30
    assert all(value * 30 == pytest.approx(round(value * 30), abs=1e-4) for value in found)


def test_misclassified_images_are_not_attacked(tmp_path):
    data = DataLoader(TensorDataset(torch.zeros(8, 2), torch.ones(8).long()), 4)
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.bias.copy_(torch.tensor([9.0, 0.0]))
    module = ConditionalEBM(net, 2, Box(-1, 1, (2,)))
    callback = Robustness([0.1], [0.1], [], limit=None)
    (metrics,) = trainer(tmp_path, callbacks=[callback]).test(module, data, verbose=False)
    assert (metrics["robust/clean"], metrics["robust/linf_0.1"], metrics["robust/l2_0.1"]) == (0, 0, 0)


def test_errors_at_a_small_eps_count_at_a_larger_eps(tmp_path):
    """A thin shell of errors at distance 0.05, which a single long step jumps over."""

    class Shell(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([torch.zeros_like(x), 0.01 - (x.abs() - 0.05).abs()], 1)

    data = DataLoader(TensorDataset(torch.full((50, 1), 1e-3), torch.zeros(50).long()), 50)
    callback = Robustness([0.05, 0.9], [], [], steps=1, directory=tmp_path)
    module = ConditionalEBM(Shell(), 2, Box(-1, 1, (1,)))
    (metrics,) = trainer(tmp_path, callbacks=[callback]).test(module, data, verbose=False)
    assert (metrics["robust/clean"], metrics["robust/linf_0.05"], metrics["robust/linf_0.9"]) == (1, 0, 0)


def test_bad_arguments():
    for make, message in (
        (lambda: Robustness(limit=0), "'limit' should be at least 1 or None, got 0"),
        (lambda: Robustness([-1.0]), "'eps' should be positive, got -1"),
        (lambda: Robustness(noise=[0.0]), "'noise' should be positive, got 0"),
        (lambda: Robustness(steps=0), "'steps' should be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
