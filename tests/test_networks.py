"""Reference networks: what a spectral norm promises, and that runs and checkpoints keep it."""

import torch

from ebm_lightning import JEM
from ebm_lightning.networks import MLP, SpectrallyNormalised
from ebm_lightning.samplers import quiet, value_and_gradient
from tests.helpers import BOX, batches, jem, trainer, weights


def steepest(net: torch.nn.Module) -> float:
    energy = jem(net).energy
    with quiet(energy):
        return float(value_and_gradient(energy, BOX.sample(500))[1].norm(dim=1).max())


def test_a_normalised_network_has_no_steep_energy():
    """SiLU's slope is at most 1.1, so two layers of norm 1 and a logsumexp have one of at most 1.1."""
    net = MLP(4, 3, (8,))
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(20)
    assert steepest(net) > 10
    normalised = SpectrallyNormalised(net)
    for _ in range(50):  # the power iteration moves in training mode
        normalised.train()(torch.zeros(1, 4))
    assert steepest(normalised.eval()) < 1.1


def test_it_trains_and_its_checkpoint_loads(tmp_path):
    module, t = jem(SpectrallyNormalised(MLP(4, 3, (8,)))), trainer(tmp_path)
    before = weights(module)
    t.fit(module, batches())
    assert not torch.equal(weights(module), before)
    t.save_checkpoint(tmp_path / "m.ckpt")
    again, x = JEM.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True), BOX.sample(5)
    assert torch.equal(again.eval()(x), module.eval()(x))
