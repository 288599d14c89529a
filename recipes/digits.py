"""Train a joint energy model and a plain classifier on handwritten digits: ``python recipes/digits.py``.

Both use the same network and scikit-learn's bundled 8x8 digits, so nothing is downloaded. The recipe evaluates them,
prints a table that compares them, and writes checkpoints, metrics.json and figures to one folder.
"""

import functools
import json
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import lightning as L
import torch
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from tqdm import tqdm

from ebm_lightning import JEM, SGLD, AISLogZ, Calibration, OODDetection, ReplayBuffer, SampleGrid
from ebm_lightning.data import Digits
from ebm_lightning.evaluation.report import results_folder
from ebm_lightning.networks import ConvNet

LoggerName = Literal["csv", "tensorboard", "wandb"]
OODName = Literal["noise", "shuffled", "inverted", "transposed", "flipped", "interpolated"]
OOD: tuple[OODName, ...] = ("noise", "shuffled", "inverted", "transposed", "flipped", "interpolated")


def main(
    seed: int = 0,
    output: Path | None = None,
    logger: LoggerName = "csv",
    epochs: int = 100,
    batch_size: int = 64,
    width: int = 24,
    learning_rate: float = 1e-3,
    conditional_weight: float = 3.0,
    generative_weight: float = 1.0,
    energy_l2: float = 0.0,
    step_size: float = 0.1,
    noise_std: float = 0.01,
    sampler_steps: int = 20,
    buffer_size: int = 2000,
    reinit_prob: float = 0.05,
    ood: tuple[OODName, ...] = OOD,
    ais_temperatures: int = 150,
    ais_num_chains: int = 200,
    log_checkpoint: bool = False,
    progress_bar: bool = True,
) -> dict[str, float]:
    """Train and evaluate JEM and a plain classifier on 8x8 digits.

    Args:
        seed: Seed of the weights, the chains and the data order.
        output: New or empty folder for the results. Default: the next free runs/digits-N.
        logger: Where metrics are logged during training. wandb also works without an account: set WANDB_MODE=offline.
        epochs: Passes over the 1077 training images.
        batch_size: Images per batch; each training step also moves this many chains.
        width: Channels of the network's first layer.
        learning_rate: Maximum learning rate of Adam's one-cycle schedule.
        conditional_weight: Weight of -log p(y|x).
        generative_weight: Weight of -log p(x). 0 trains only the plain classifier.
        energy_l2: Weight of the squared energies.
        step_size: Step size of Langevin dynamics, in squared units of x per unit of energy.
        noise_std: Noise of Langevin dynamics, in units of x. The implied temperature is noise_std^2 / (2 step_size).
        sampler_steps: Langevin steps per batch.
        buffer_size: Number of persistent chains.
        reinit_prob: Probability that a chain is reinitialized from uniform noise.
        ood: Out-of-distribution sets to detect by log p(x).
        ais_temperatures: Temperatures of the annealing that estimates log Z at test time.
        ais_num_chains: Chains of the annealing.
        log_checkpoint: Upload the checkpoint to W&B as an artifact.
        progress_bar: Show progress bars, with the energies of data and negatives.
    """
    start = time.time()
    folder = results_folder(output, "digits")
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec).*")

    def bar(loop: Iterable[int]) -> Iterable[int]:
        return tqdm(loop, "annealing", disable=not progress_bar, leave=False)

    def run(name: str, weight: float, directory: Path) -> dict[str, float]:
        L.seed_everything(seed, verbose=False)
        data = Digits(batch_size)
        total_steps = epochs * (1077 // batch_size)
        module = JEM(
            ConvNet(data.support.shape, data.num_classes, width),
            data.num_classes,
            data.support,
            SGLD(step_size, noise_std, sampler_steps),
            ReplayBuffer(buffer_size, reinit_prob),
            conditional_weight=conditional_weight,
            generative_weight=weight,
            energy_l2=energy_l2,
            optimizer=functools.partial(torch.optim.Adam, lr=learning_rate),
            lr_scheduler=functools.partial(
                torch.optim.lr_scheduler.OneCycleLR, max_lr=learning_rate, total_steps=total_steps, pct_start=0.05
            ),
        )
        callbacks: list[Callback] = [
            EMAWeightAveraging(decay=0.99),
            Calibration(directory=directory),
            OODDetection(ood, directory=directory),
            AISLogZ(0, ais_temperatures, ais_num_chains, num_levels=data.num_levels, directory=directory, progress=bar),
            ModelCheckpoint(
                directory / "checkpoints", filename="model", enable_version_counter=False, save_on_train_epoch_end=True
            ),
        ]
        if weight:
            callbacks.append(SampleGrid(every_n_epochs=20, directory=directory, scale=4))
        trainer = L.Trainer(
            max_epochs=epochs,
            devices=1,
            logger=_logger(logger, directory, f"{folder.name}-{name}", log_checkpoint),
            callbacks=callbacks,
            gradient_clip_val=1.0,
            check_val_every_n_epoch=10,
            log_every_n_steps=16,
            enable_progress_bar=progress_bar,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=data)
        metrics = dict(trainer.test(module, datamodule=data, verbose=False)[0])
        if logger == "wandb":
            import wandb

            wandb.finish()
        return metrics

    baseline = run("baseline", 0.0, folder / "baseline")
    jem = run("jem", generative_weight, folder) if generative_weight else baseline
    metrics = {**jem, **{f"baseline/{name}": value for name, value in baseline.items()}}
    metrics["seconds"] = time.time() - start
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2))
    print(table(jem, baseline))
    print(f"{metrics['seconds']:.0f} seconds; checkpoints, metrics.json and figures are in {folder}")
    return metrics


def table(jem: dict[str, float], baseline: dict[str, float]) -> str:
    """Both models side by side, one line per metric."""
    lines = [f"{'':36}{'JEM':>12}{'classifier':>12}"]
    lines += [f"{name:36}{jem[name]:12.4f}{baseline[name]:12.4f}" for name in jem]
    return "\n".join(lines)


def _logger(name: LoggerName, directory: Path, run_name: str, log_checkpoint: bool) -> Logger:
    if name == "wandb":
        directory.mkdir(parents=True, exist_ok=True)
        return WandbLogger(run_name, directory, project="ebm_lightning", log_model=log_checkpoint)
    return (CSVLogger if name == "csv" else TensorBoardLogger)(directory, "logs", "")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
