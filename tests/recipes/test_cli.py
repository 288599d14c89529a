"""Checkpoints through the command line: every preset, and a LightningCLI project with its own network."""

import os
import subprocess
import sys

import pytest
import torch
import yaml

from ebm_lightning import JEM, SGLD, Box, ClassGaussians, ReplayBuffer
from ebm_lightning.data import Rings
from tests.helpers import trainer, weights
from tests.recipes.test_configs import CONFIGS, images, small, train  # noqa: F401 ('images' is a fixture)

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_subcommand_takes_a_checkpoint(config, tmp_path, images):  # noqa: F811
    config = small(config, tmp_path)
    train(["fit", "--config", str(config)])
    checkpoint = str(next(tmp_path.rglob("*.ckpt")))
    for command in ("validate", "test", "predict"):
        train([command, "--config", str(config), "--ckpt_path", checkpoint])
    resumed = train(["fit", "--config", str(config), "--trainer.max_steps", "2", "--ckpt_path", checkpoint])
    assert resumed.trainer.global_step == 2


NETWORK = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, 3))

    def forward(self, x):
        return self.layers(x)
"""
PROJECT = """
from lightning.pytorch.cli import LightningCLI
from ebm_lightning import JEM, SADAJEM
from ebm_lightning.data import Rings

class Mine(SADAJEM):
    def __init__(self, classifier, num_classes: int, support, extra: int = 3, **kwargs):
        super().__init__(classifier, num_classes, support, **kwargs)
        self.extra = extra

if __name__ == "__main__":
    LightningCLI({kind}, Rings, save_config_kwargs={{"overwrite": True}})
"""
CONFIG = """
trainer:
  max_steps: 2
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  limit_val_batches: 1
  limit_test_batches: 1
  limit_predict_batches: 1
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: ., filename: model, every_n_train_steps: 2}
model:
  classifier: {class_path: network.Net, init_args: {width: 9}}
  num_classes: 3
  support: {class_path: ebm_lightning.Box, init_args: {low: -4, high: 4, shape: [2]}}
  sampler: {class_path: ebm_lightning.SGLD, init_args: {step_size: 0.1, temperature: 1.0, steps: 2}}
  chains:
    class_path: ebm_lightning.ReplayBuffer
    init_args: {size: 300, initial: {class_path: ebm_lightning.ClassGaussians}}
  optimizer: {class_path: torch.optim.Adam, init_args: {lr: 1.0e-3}}
data: {size: 1024}
"""


@pytest.mark.filterwarnings("ignore")
def test_checkpoints_of_python_and_of_the_command_line(tmp_path, monkeypatch):
    """Kills: hyperparameters of a checkpoint above those of the command line, an error of the CLI from Python."""
    (tmp_path / "network_of_test.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import network_of_test

    arguments = yaml.safe_load(CONFIG.replace("network.Net", "network_of_test.Net"))
    model = {"class_path": "ebm_lightning.JEM", "init_args": arguments["model"]}
    data = {"class_path": "ebm_lightning.data.Rings", "init_args": arguments["data"]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(arguments | {"model": model, "data": data}))
    chains = ReplayBuffer(300, initial=ClassGaussians())
    module = JEM(network_of_test.Net(9), 3, Box(-4, 4, (2,)), SGLD(0.1, temperature=1.0, steps=2), chains)
    run = trainer(tmp_path, max_steps=2)
    run.fit(module, datamodule=Rings(size=1024))
    run.save_checkpoint("python.ckpt")
    for command in ("validate", "test", "predict"):
        done = train([command, "--config", "run.yaml", "--ckpt_path", "python.ckpt", "--model.sampler.steps", "3"])
        assert torch.equal(weights(done.model), weights(module))
        assert done.model.sampler.steps == 3
    done = train(["fit", "--config", "run.yaml", "--ckpt_path", "python.ckpt", "--trainer.max_steps", "4"])
    assert done.trainer.global_step == 4
    assert torch.equal(weights(JEM.load_from_checkpoint("model.ckpt")), weights(done.model))
    monkeypatch.setitem(sys.modules, "network_of_test", None)  # not to be imported
    with pytest.raises(ValueError, match=r"holds a configuration that cannot be built here.*classifier=..."):
        JEM.load_from_checkpoint("model.ckpt")


@pytest.mark.parametrize("kind", ["JEM", "Mine"])
def test_a_project_with_its_own_network_takes_a_checkpoint(kind, tmp_path):
    (tmp_path / "network.py").write_text(NETWORK)
    (tmp_path / "main.py").write_text(PROJECT.format(kind=kind))
    (tmp_path / "project.yaml").write_text(CONFIG)

    def run(*arguments: str) -> None:
        command = [sys.executable, "-W", "ignore", "main.py", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ})
        assert done.returncode == 0, done.stderr[-3000:]

    run("fit", "--config", "project.yaml")
    for command in ("validate", "test", "predict"):
        run(command, "--config", "project.yaml", "--ckpt_path", "model.ckpt")
    run("fit", "--config", "project.yaml", "--trainer.max_steps", "4", "--ckpt_path", "model.ckpt")
