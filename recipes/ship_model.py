"""Add a trained model to those that come with the package: ``python recipes/ship_model.py --name NAME ...``.

Evaluates the checkpoint by :func:`ebm_lightning.evaluate`, sets its threshold on validation data, writes the weights to
``ebm_lightning/models/NAME.ckpt``, and adds an entry to ``models.json``. Then paste the table that ``ebm-lightning
models`` prints into docs/models.md.
"""

import hashlib
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import auto_cli

import ebm_lightning.data  # noqa: F401  (names of data modules)
from ebm_lightning import evaluate
from ebm_lightning.models import Shipped, load
from ebm_lightning.models.index import FOLDER, add_to_index
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.resume.hparams import describe

KEPT = ("state_dict", "hyper_parameters", "class_path", "pytorch-lightning_version", "ranks", "argument_tensors")
MEASURED = ("test/accuracy", "test/nll", "test/ece", "ais/log_likelihood", "ais/bits_per_dim")
OF_THE_MACHINE = ("root", "download")
"""Arguments of data modules that are not stored."""


def main(
    name: str,
    checkpoint: Path,
    data: L.LightningDataModule,
    what: str,
    made_by: str,
    keep_chains: bool = True,
    ais_temperatures: int = 500,
    ais_num_chains: int = 500,
    progress_bar: bool = True,
) -> Shipped:
    """Evaluate a checkpoint and add it to the package.

    Args:
        name: Name for ebm_lightning.load.
        checkpoint: Checkpoint of the model.
        data: Its data module.
        what: What it is, in a few words.
        made_by: The command that trained it.
        keep_chains: Keep the chains, so that training can continue with them.
        ais_temperatures: Temperatures of the annealing that estimates log Z.
        ais_num_chains: Its chains.
        progress_bar: Show progress bars.
    """
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec|in eval mode).*")
    model = load(checkpoint)
    settings: dict[str, Any] = {"ais_temperatures": ais_temperatures, "ais_num_chains": ais_num_chains}
    with tempfile.TemporaryDirectory() as folder:
        metrics = evaluate(model, data, output=folder, progress_bar=progress_bar, **settings)
    data.setup("fit")
    model.threshold(data.val_dataloader())
    path = FOLDER / f"{name}.ckpt"
    torch.save(slim(checkpoint, model, keep_chains), path)
    entry = Shipped(
        path.name,
        hashlib.sha256(path.read_bytes()).hexdigest(),
        what,
        made_by,
        described(data),
        settings,
        with_errors(metrics),
    )
    add_to_index(name, entry)
    print(f"{path} has {path.stat().st_size / 1e6:.2f} MB")
    return entry


def slim(checkpoint: Path, model: ConditionalEBM, chains: bool) -> dict[str, Any]:
    """The parts of a checkpoint that loading needs, with the state of ``model``: it has log Z and the threshold."""
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    kept = {key: saved[key] for key in KEPT if key in saved and (chains or key != "ranks")}
    plain = {key: value for key, value in saved["hyper_parameters"].items() if not key.startswith("_")}  # of the CLI
    return kept | {"state_dict": model.state_dict(), "hyper_parameters": plain}


def described(data: L.LightningDataModule) -> dict[str, Any]:
    """The class of a data module, and its arguments other than folders."""
    description: dict[str, Any] = describe(data)
    arguments = {key: value for key, value in description["init_args"].items() if key not in OF_THE_MACHINE}
    return description | {"init_args": arguments}


def with_errors(metrics: dict[str, float]) -> dict[str, tuple[float, float]]:
    """The main metrics with their standard errors; of out-of-distribution detection, AUROC by log p(x)."""
    keys = [
        key for key in metrics if key in MEASURED or (key.startswith("ood/") and key.endswith("/log_density/auroc"))
    ]
    found = {key: (metrics[key], metrics[f"{key}_std_err"]) for key in keys}
    if "ais/log_z" in metrics:
        found["ais/log_z"] = metrics["ais/log_z"], metrics["ais/std_err"]
        found["ais/reliable"] = metrics["ais/reliable"], 0.0
    return {key: (round(value, 6), round(error, 6)) for key, (value, error) in found.items()}


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
