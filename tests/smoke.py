"""What an installed wheel has to do: ``python smoke.py without-extras`` or ``with-extras``.

It needs no pytest and no sources, so that CI runs it in clean environments, see ``.ci/versions``.
"""

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

import ebm_lightning
from ebm_lightning import JEM, MALA, SGLD, Box, ChainDiagnostics, DivergenceGuard, ReplayBuffer, ais
from ebm_lightning.networks import MLP
from ebm_lightning.partition import quadrature

OPTIONAL = ("matplotlib", "torchvision", "sklearn", "wandb", "zuko")
BOX = Box(-1, 1, (2,))


def trained(folder: Path) -> JEM:
    """A JEM that was trained on tensors, saved, loaded and resumed."""
    torch.manual_seed(0)
    x = BOX.sample(256)
    loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 64)
    kwargs = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    model = JEM(MLP(2, 2, (16,)), 2, BOX, SGLD.langevin(0.01, steps=5), ReplayBuffer(256))
    callbacks = [ChainDiagnostics(every_n_steps=2), DivergenceGuard()]
    trainer = L.Trainer(max_epochs=2, callbacks=callbacks, default_root_dir=folder, **kwargs)
    trainer.fit(model, loader)
    trainer.save_checkpoint(folder / "model.ckpt")
    loaded = JEM.load_from_checkpoint(folder / "model.ckpt", classifier=MLP(2, 2, (16,)), weights_only=True)
    assert torch.equal(loaded.energy(x), model.energy(x))
    L.Trainer(max_epochs=3, default_root_dir=folder, **kwargs).fit(loaded, loader, ckpt_path=folder / "model.ckpt")
    return loaded


def log_z_is_right(model: JEM) -> None:
    model.eval()
    estimate, exact = ais(model.energy, BOX, temperatures=50, num_chains=400, seed=0), quadrature(model.energy, BOX)
    assert abs(estimate.log_z - float(exact)) < 5 * estimate.std_err + 1e-3, (estimate, exact)
    assert model.sample(8, sampler=MALA(0.1, steps=5)).shape == (8, 2)


def without_extras() -> None:
    """The base install trains and estimates log Z; names that need an extra say how to install it."""
    assert not any(map(importlib.util.find_spec, OPTIONAL)), "this environment has an optional package"
    model = ebm_lightning.load("rings")
    assert model.score(model.sample(4)).shape == (4,)
    assert "`rings`" in command("models")
    for name in ("AISLogZ", "OODDetection", "SampleGrid"):
        assert missing(name).endswith(': pip install "ebm_lightning[images]"')


def command(*arguments: str) -> str:
    """What the command ``ebm-lightning`` of this environment prints."""
    script = Path(sys.executable).parent / "ebm-lightning"
    return subprocess.run([script, *arguments], check=True, capture_output=True, text=True).stdout


def missing(name: str) -> str:
    """The error of a name whose optional packages are not installed."""
    try:
        getattr(ebm_lightning, name)
    except ModuleNotFoundError as error:
        return str(error)
    return f"{name} can be imported"


def with_extras(folder: Path) -> None:
    """Every public name can be imported, and a callback draws on real digits."""
    assert all(getattr(ebm_lightning, name) for name in ebm_lightning.__all__)
    assert "runs/density_digits" in command("fit", "--config", "density_digits", "--print_config")
    data = ebm_lightning.data.Digits()
    model = JEM(ebm_lightning.networks.ConvNet((1, 8, 8), 10, 4), 10, data.support, SGLD.jem(2), ReplayBuffer(64))
    grid = ebm_lightning.SampleGrid(1, directory=folder)
    limits = {"limit_train_batches": 2, "limit_val_batches": 1, "max_epochs": 1, "accelerator": "cpu"}
    L.Trainer(callbacks=[grid], default_root_dir=folder, enable_progress_bar=False, **limits).fit(model, data)
    assert list(folder.glob("*.png"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        log_z_is_right(trained(Path(temporary)))
        without_extras() if sys.argv[1] == "without-extras" else with_extras(Path(temporary))
    print(f"{sys.argv[1]}: ebm_lightning {ebm_lightning.__version__} works with torch {torch.__version__}")
