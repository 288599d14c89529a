"""Spectral normalization in training and checkpoints."""

import torch

from ebm_lightning import JEM
from ebm_lightning.networks import MLP, SpectrallyNormalized
from ebm_lightning.samplers import frozen, value_and_gradient
from tests.helpers import BOX, batches, jem, trainer, weights


def steepest(net: torch.nn.Module) -> float:
    energy = jem(net).energy
    with frozen(energy):
        return float(value_and_gradient(energy, BOX.sample(500))[1].norm(dim=1).max())


def test_spectral_normalization_bounds_the_gradient():
    """The slope of SiLU is at most 1.1, and so is that of two layers of norm 1 and a logsumexp."""
    net = MLP(4, 3, (8,))
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(20)
    assert steepest(net) > 10
    normalized = SpectrallyNormalized(net)
    for _ in range(50):  # the power iteration runs in training mode
        normalized.train()(torch.zeros(1, 4))
    assert steepest(normalized.eval()) < 1.1


def test_a_spectrally_normalized_network_trains_and_reloads(tmp_path):
    module, t = jem(SpectrallyNormalized(MLP(4, 3, (8,)))), trainer(tmp_path)
    before = weights(module)
    t.fit(module, batches())
    assert not torch.equal(weights(module), before)
    t.save_checkpoint(tmp_path / "m.ckpt")
    again, x = JEM.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True), BOX.sample(5)
    assert torch.equal(again.eval()(x), module.eval()(x))
