"""A joint energy model of MNIST or FashionMNIST and the plain classifier of the same network, trained and evaluated.

``python recipes/mnist.py --root DIR`` trains both on MNIST, and with ``--config recipes/fashionmnist.yaml`` on
FashionMNIST, then runs ``recipes/evaluate.py`` on the two checkpoints: its
report.html, metrics.json and pictures are in the run's folder, ``runs/mnist-0`` and so on.
"""

import functools
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Literal

import lightning as L
import torch
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from ebm_lightning import JEM, SGLD, ChainDiagnostics, ClassGaussians, DivergenceGuard, ReplayBuffer, SampleGrid
from ebm_lightning.data import MNIST, Augment, FashionMNIST
from ebm_lightning.memory import keep_freed_memory
from ebm_lightning.networks import StridedConvNet
from ebm_lightning.report import results_folder

DATA = {"MNIST": MNIST, "FashionMNIST": FashionMNIST}
Precision = Literal["32-true", "bf16-mixed"]


def main(
    dataset: Literal["MNIST", "FashionMNIST"] = "MNIST",
    root: Path = Path("data"),
    seed: int = 0,
    output: Path | None = None,
    logger: Literal["csv", "wandb"] = "csv",
    steps: int = 2250,
    baseline_steps: int = 2250,
    batch_size: int = 256,
    generative_batch_size: int = 64,
    augment: Augment = "crop",
    width: int = 16,
    dropout: float = 0.0,
    learning_rate: float = 1e-3,
    gradient_clip: float = 10.0,
    conditional_weight: float = 10.0,
    energy_l2: float = 0.05,
    classifier_noise: float = 0.1,
    data_noise: float = 0.1,
    step_size: float = 5.0,
    noise_std: float = 0.01,
    max_gradient: float = 0.01,
    chain_steps: int = 10,
    buffer_size: int = 2000,
    reinit_prob: float = 0.05,
    start: Literal["noise", "gaussians"] = "noise",
    size: int | None = None,
    precision: Precision = "bf16-mixed",
    evaluate: bool = True,
    keep_memory: bool = False,
    progress_bar: bool = True,
) -> Path:
    """Train JEM and the plain classifier on 28x28 images, and evaluate both.

    Args:
        dataset: Which images.
        root: Folder with them in torchvision's layout, downloaded there if absent.
        seed: Of weights, chains and the order of the data.
        output: Folder for results, new or empty; by default the next free runs/mnist-N or runs/fashionmnist-N.
        logger: Where metrics go; wandb works offline with WANDB_MODE=offline and no account.
        steps: Optimiser steps of the joint model. More make a better classifier and worse chains: with 3000, half
            of those that start at noise stay there.
        baseline_steps: Optimiser steps of the plain classifier.
        batch_size: Images in a batch for p(y|x).
        generative_batch_size: Images in a batch for p(x), and chains moved in a step.
        augment: What is done to the images for p(y|x) before they are noisy.
        width: Of the network.
        dropout: Of the network, before its two linear layers.
        learning_rate: Peak of Adam's one-cycle schedule.
        gradient_clip: Largest norm of the joint model's gradient.
        conditional_weight: Weight of -log p(y|x) where -log p(x) has 1.
        energy_l2: Weight of the squared energies.
        classifier_noise: Standard deviation of Gaussian noise on the joint model's images for p(y|x), in units of x.
            It keeps the energy from getting steep.
        data_noise: The same on its images for p(x). Black margins are what chains follow worst; noise widens them.
        step_size: Of Langevin dynamics, in squared units of x per unit of energy.
        noise_std: Of Langevin dynamics, in units of x.
        max_gradient: Clamps the gradient's components: no step is longer than step_size times this, so that chains
            do not swing from wall to wall.
        chain_steps: Langevin steps of each chain for each batch.
        buffer_size: Number of persistent chains.
        reinit_prob: Probability that a chain starts anew.
        start: Where it then starts: at uniform noise, or in a Gaussian of its class's mean and covariance.
        size: Training images to use; by default all but the 5000 held out.
        precision: Of the network's body.
        evaluate: Run recipes/evaluate.py on the checkpoints, with fresh chains that start in the Gaussians.
        keep_memory: On a CPU with glibc, keep freed memory in the process: faster, see docs/speed.md.
        progress_bar: Show progress bars.
    """
    began = time.time()
    folder = results_folder(output, dataset.lower())
    if keep_memory:
        keep_freed_memory()
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec|Checkpoint directory).*")

    def run(name: str, weight: float, total_steps: int) -> float:
        L.seed_everything(seed, verbose=False)
        data = DATA[dataset](
            root,
            batch_size,
            augment=augment,
            noise_std=classifier_noise if weight else 0.0,
            separate_batch_size=generative_batch_size if weight else None,
            size=size,
        )
        module = JEM(
            StridedConvNet(data.support.shape, data.num_classes, width, dropout),
            data.num_classes,
            data.support,
            SGLD(step_size, noise_std, chain_steps, max_gradient=max_gradient),
            ReplayBuffer(buffer_size, reinit_prob, ClassGaussians() if start == "gaussians" else None),
            conditional_weight=conditional_weight,
            generative_weight=weight,
            energy_l2=energy_l2,
            data_noise=data_noise if weight else 0.0,
            optimizer=functools.partial(torch.optim.Adam, lr=learning_rate),
            lr_scheduler=functools.partial(
                torch.optim.lr_scheduler.OneCycleLR, max_lr=learning_rate, total_steps=total_steps, pct_start=0.1
            ),
        )
        saver = ModelCheckpoint(folder, filename=name, save_last=False, enable_version_counter=False)
        callbacks: list[Callback] = [EMAWeightAveraging(decay=0.995), saver]
        if weight:
            callbacks += [ChainDiagnostics(), DivergenceGuard(), SampleGrid(1, directory=folder, scale=2)]
        trainer = L.Trainer(
            max_epochs=-1,
            max_steps=total_steps,
            accelerator="auto",
            devices=1,
            precision=precision,
            logger=_logger(logger, folder / name, f"{folder.name}-{name}"),
            callbacks=callbacks,
            gradient_clip_val=gradient_clip if weight else None,
            enable_progress_bar=progress_bar,
            enable_model_summary=False,
        )
        trainer.fit(module, data)
        trainer.save_checkpoint(folder / f"{name}.ckpt")
        accuracy = float(trainer.validate(module, data, verbose=False)[0]["val/accuracy"])
        if logger == "wandb":
            import wandb

            wandb.finish()
        return accuracy

    held_out = {"baseline": run("baseline", 0.0, baseline_steps), "jem": run("jem", 1.0, steps)}
    seconds = time.time() - began
    (folder / "training.json").write_text(json.dumps({"val/accuracy": held_out, "seconds": seconds}, indent=2))
    print(f"Trained both in {seconds:.0f} s; accuracy on 5000 images held out: {held_out}. Checkpoints are in {folder}")
    if evaluate:
        command = [sys.executable, str(Path(__file__).with_name("evaluate.py"))]
        command += ["--checkpoint", str(folder / "jem.ckpt"), "--baseline", str(folder / "baseline.ckpt")]
        command += ["--data", dataset, "--data.root", str(root), "--output", str(folder / "evaluation")]
        command += ["--logger", logger, "--progress_bar", str(progress_bar).lower()]
        command += ["--ood_images", "10000", "--sample_steps", "40", "--start", "ebm_lightning.ClassGaussians"]
        command += [] if size is None else ["--data.size", str(size)]
        print(" ".join(command))
        kept = {name: str(2**30) for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_") if keep_memory}
        subprocess.run(command, check=True, env={**os.environ, **kept})
    print(f"{time.time() - began:.0f} seconds in all")
    return folder


def _logger(name: str, directory: Path, run_name: str) -> Logger:
    if name == "wandb":
        directory.mkdir(parents=True, exist_ok=True)
        return WandbLogger(run_name, directory, project="ebm_lightning")
    return CSVLogger(directory, "logs", "")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
