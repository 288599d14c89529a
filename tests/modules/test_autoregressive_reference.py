"""A model with a learned reference density: fitted once before training, trained without gradients in x, and kept."""

import copy
import functools

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning import (
    JEM,
    Adaptation,
    AISLogZ,
    AutoregressiveDensity,
    Box,
    Chains,
    NoiseRefresh,
    ReplayBuffer,
    ReweightedBuffer,
)
from ebm_lightning.rng import make_generator

SHAPE, LEVELS = (1, 4, 4), 4
BOX = Box(-1, 1, SHAPE)


class Steps(nn.Module):
    """Logits without a useful gradient in x, as of a network that rounds its input."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((x.detach() * 2).round().flatten(1))


def loader() -> DataLoader[tuple[torch.Tensor, ...]]:
    generator = make_generator(0, "images")
    y = torch.arange(240) % 3
    level = (y[:, None, None, None] + torch.randint(2, (240, *SHAPE), generator=generator)).clamp(max=3)
    x = (level + torch.rand((240, *SHAPE), generator=generator)) / LEVELS * 2 - 1
    return DataLoader(TensorDataset(x, y), 40)


def model(chains: Chains | None = None) -> JEM:
    reference = AutoregressiveDensity(BOX, LEVELS, bins=4, radius=1, width=8, batch_size=20)
    return JEM(
        Steps(),
        3,
        Box(-1, 1, SHAPE, reference=reference),
        NoiseRefresh(steps=2),
        copy.deepcopy(chains) or ReplayBuffer(80, reinit_prob=0.0),
        energy_l2=0.0,
        adaptation=Adaptation(max_gap=1.0),
    )


def trainer(epochs: int, **options) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(max_epochs=epochs, devices=1, **quiet, **options)


def trained(path, epochs: int, chains: Chains | None = None) -> JEM:
    """A model whose checkpoint is at ``path``."""
    module, fit = model(chains), trainer(epochs)
    fit.fit(module, loader())
    fit.save_checkpoint(path)
    return module


def test_it_is_fitted_before_training_and_kept_in_checkpoints(tmp_path, seed):
    L.seed_everything(seed)
    path = tmp_path / "model.ckpt"
    module = trained(path, 2)
    weights = module.support.reference.network.out_weight.clone()
    assert module.support.reference.fitted
    assert module.chain_step is not None
    x = loader().dataset.tensors[0]
    loaded = JEM.load_from_checkpoint(path, classifier=Steps(), weights_only=True).eval()
    torch.testing.assert_close(loaded.energy(x), module.eval().energy(x))
    resumed = model()
    trainer(3).fit(resumed, loader(), ckpt_path=path, weights_only=True)
    assert torch.equal(resumed.support.reference.network.out_weight, weights)  # not fitted again, not trained


@pytest.mark.parametrize("chains", [ReplayBuffer(80, 0.0), ReweightedBuffer(80, 0.1)], ids=lambda c: type(c).__name__)
def test_a_resumed_run_is_bit_equal(tmp_path, chains, seed):
    L.seed_everything(seed)
    trained(tmp_path / "half.ckpt", 1, chains)
    L.seed_everything(seed)
    whole = model(chains)
    trainer(2).fit(whole, loader())
    resumed = model(chains)
    trainer(2).fit(resumed, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert torch.equal(resumed.classifier.head.weight, whole.classifier.head.weight)
    assert torch.equal(resumed.chains.x, whole.chains.x)


def test_reweighted_chains_know_log_z_while_the_model_trains(seed):
    """It is low by a tenth of a nat: training raises the energy of these very chains.

    Mutants: an energy that is not that of the moved chains, weights of the model before last.
    """
    L.seed_everything(seed)
    module = model(ReweightedBuffer(400, 0.1))
    module.optimizer = functools.partial(torch.optim.Adam, lr=0.005)
    trainer(20).fit(module, loader())
    with torch.no_grad():
        logits = module.eval()(module.support.sample(20_000))
    tilt = logits.logsumexp(1).double()  # log Z relative to the reference
    assert tilt.std() > 0.6
    assert abs(module.chains.log_z - float(tilt.exp().mean().log())) < 0.35


def test_log_z_and_samples_need_no_gradient(tmp_path, seed):
    L.seed_everything(seed)
    module = model()
    trainer(2).fit(module, loader())
    ais = AISLogZ(0, 10, 200, num_levels=LEVELS, directory=tmp_path)
    metrics = trainer(1, callbacks=[ais]).test(module, loader(), verbose=False)[0]
    assert metrics["ais/reliable"] == 1
    assert metrics["ais/bits_per_dim"] < 2
    x = module.sample(20, steps=5)
    assert BOX.contains(x).all()
    assert module.log_prob(x).isfinite().all()
