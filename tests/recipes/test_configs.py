"""Every config trains a step through the command line, with generated images and small networks."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from ebm_lightning import ConditionalEBM
from ebm_lightning.commands.train import main
from ebm_lightning.data import Digits, ImageDataModule, Source, Table
from ebm_lightning.modules.lr_schedules import WarmupMultiStep
from ebm_lightning.presets import FOLDER
from ebm_lightning.resume.hparams import describe
from tests.data.pictures import made_up, write_arrays
from tests.helpers import RECIPES

CONFIGS = sorted(FOLDER.glob("*.yaml"))


def train(arguments: list[str]):
    """What ``ebm-lightning`` does."""
    return main(arguments)


@pytest.fixture
def images(monkeypatch) -> None:
    """Replaces every data set by 60 generated images of the same shape."""

    def read(source: Source, root: Path, split: str):
        shape = (1, 28, 28) if "MNIST" in source.name else (3, 32, 32)
        return made_up(60, shape)[0], torch.arange(60) % 10

    monkeypatch.setattr(Source, "fetch", lambda *_: None)
    monkeypatch.setattr(Source, "read", read)


def small(config: Path, folder: Path) -> Path:
    """The config with a narrow network, few chains and one training step."""
    content = yaml.safe_load(config.read_text())
    model, data = content["model"]["init_args"], content["data"]["init_args"]
    if "path" in data:
        data["path"] = str(write_arrays(folder, shape=(3, 32, 32)))
    network = model.get("classifier", {"init_args": {}})["init_args"]
    if "depth" in network or "widths" in network:
        network |= {"widths": [4, 4, 4], "depth": 10}
    elif "shape" in network:
        network |= {"width": 4}
    data |= {"batch_size": 4} | ({"val_size": 20} if "val_size" in data else {})
    if "separate_batch_size" in data:
        data["separate_batch_size"] = 4
    if "sampler" in model:
        sampler = model["sampler"]["init_args"]
        sampler.get("kernel", {"init_args": sampler})["init_args"]["steps"] = 2
    if "init_args" in model.get("chains", {}):
        model["chains"]["init_args"]["size"] = 40
    trainer = content["trainer"]
    for callback in trainer["callbacks"]:
        if "ModelCheckpoint" in callback["class_path"]:
            callback["init_args"]["dirpath"] = str(folder / "checkpoints")
    trainer["callbacks"] = [c for c in trainer["callbacks"] if "LearningRate" not in c["class_path"]]  # needs a logger
    trainer |= {"max_epochs": -1, "max_steps": 1, "accelerator": "cpu", "devices": 1}
    trainer |= {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer |= {"default_root_dir": str(folder)}
    (folder / "small.yaml").write_text(yaml.safe_dump(content))
    return folder / "small.yaml"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_trains_a_step(config, tmp_path, images):
    cli = train(["fit", "--config", str(small(config, tmp_path))])
    assert isinstance(cli.model, ConditionalEBM)
    assert isinstance(cli.datamodule, ImageDataModule | Digits | Table)
    assert cli.trainer.global_step == 1
    loaded = type(cli.model).load_from_checkpoint(next(tmp_path.rglob("*.ckpt")), weights_only=True)
    assert describe(loaded.support) == describe(cli.model.support)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_documents_its_command_and_source(config):
    text = config.read_text()
    assert f"ebm-lightning fit --config {config.stem}" in text
    assert "https://" in text
    model, data = (yaml.safe_load(text)[part]["init_args"] for part in ("model", "data"))
    assert model["num_classes"] == (2 if config.stem == "density_table" else 10)
    assert data.get("val_size", 5000) == (1000 if "small" in config.stem else 5000)


def test_numbers_match_the_papers():
    read = {path.stem: yaml.safe_load(path.read_text())["model"]["init_args"] for path in CONFIGS}
    samplers = {name: read[name]["sampler"]["init_args"] for name in ("jem_cifar10", "sadajem_cifar10")}
    assert samplers["jem_cifar10"] == {"step_size": 1.0, "noise_std": 0.01, "steps": 20}
    assert samplers["sadajem_cifar10"]["max_gradient"] == 1.0
    assert read["sadajem_cifar10"]["rho"] == 2.0


def test_the_schedule_warms_up_and_decays():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = WarmupMultiStep(optimizer, [6, 8], 0.5, warmup_steps=4)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_the_schedule_rejects_bad_arguments():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with pytest.raises(ValueError, match=r"'milestones' should increase, got \[8, 6\]"):
        WarmupMultiStep(optimizer, [8, 6])
    with pytest.raises(ValueError, match="'warmup_steps' should be 0 or positive, got -1"):
        WarmupMultiStep(optimizer, [8], warmup_steps=-1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_sweep_sets_existing_arguments(tmp_path, images):
    sweep = yaml.safe_load((RECIPES / "sweep.yaml").read_text())
    (config,) = set(re.findall(r"--config=(\w+) ", " ".join(sweep["command"])))
    given = {name: values["values"][-1] for name, values in sweep["parameters"].items()}
    options = [f"--{name}={value}" for name, value in given.items()]
    cli = train(["fit", "--config", str(small(FOLDER / f"{config}.yaml", tmp_path)), *options])
    assert cli.model.sampler.step_size == given["model.init_args.sampler.init_args.step_size"]
    assert cli.model.sampler.steps == given["model.init_args.sampler.init_args.steps"]
    assert cli.model.energy_l2 == given["model.init_args.energy_l2"]
    assert cli.config["fit"]["seed_everything"] == given["seed_everything"]
    assert sweep["metric"]["name"] == "val/accuracy"
