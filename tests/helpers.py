"""Small trainings that tests share."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning import JEM, SGLD, Box, ReplayBuffer
from ebm_lightning.networks import MLP

BOX = Box(-1, 1, (4,))
RECIPES = Path(__file__).parent.parent / "recipes"


def batches(n: int = 24, batch_size: int = 8, shape: tuple[int, ...] = (4,), classes: int = 3) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, *shape, generator=generator) * 2 - 1
    y = torch.randint(classes, (n,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size)


def jem(classifier: nn.Module | None = None, **arguments: Any) -> JEM:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "num_classes": 3,
        "support": BOX,
        "sampler": SGLD(0.1, 0.01, 3),
        "chains": ReplayBuffer(30),
        "energy_l2": 0.0,
        "seed": 0,
    }
    return JEM(MLP(4, 3, (8,)) if classifier is None else classifier, **{**defaults, **arguments})


def trainer(folder: Path, **arguments: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "default_root_dir": folder,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return L.Trainer(**{**defaults, **arguments})


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def recipe(name: str) -> ModuleType:
    """The module of a recipe, by its path in the folder of recipes."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, RECIPES / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
