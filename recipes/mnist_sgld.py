"""The published JEM on MNIST or FashionMNIST: SGLD at a very low temperature, and the plain classifier of its network.

``python recipes/mnist_sgld.py --data.root DIR`` trains both on MNIST, ``--config recipes/fashionmnist_sgld.yaml`` on
FashionMNIST. Checkpoints, pictures and the evaluation's report.html and metrics.json are in the run's folder,
``runs/mnist-0`` and so on. ``recipes/mnist.py`` trains a density instead.
"""

import copy
import functools
import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint

from ebm_lightning import (
    JEM,
    SGLD,
    ChainDiagnostics,
    ClassGaussians,
    Density,
    DivergenceGuard,
    ReplayBuffer,
    SampleGrid,
    evaluate,
)
from ebm_lightning.data import ImageDataModule
from ebm_lightning.evaluation.checkpoints import load_model
from ebm_lightning.evaluation.loggers import finish_wandb, run_logger
from ebm_lightning.evaluation.report import comparison_table, results_folder
from ebm_lightning.networks import StridedConvNet
from ebm_lightning.samplers.memory import keep_freed_memory

DATA = {
    "class_path": "ebm_lightning.data.MNIST",
    "init_args": {"batch_size": 256, "separate_batch_size": 64, "augment": "crop", "noise_std": 0.1},
}


@dataclass(kw_only=True)
class Options:
    """Train a JEM and the plain classifier of the same network on images, and evaluate both.

    Args:
        data: MNIST or FashionMNIST, such as --data FashionMNIST --data.root DIR. Batches of the joint model: batch_size
            images for p(y|x), with augmentation and noise, which keeps the energy from getting steep, and
            separate_batch_size images for p(x), which is also the number of chains per step. The plain classifier
            trains without noise.
        output: Folder for results, new or empty; by default the next free runs/mnist-N or runs/fashionmnist-N.
        logger: Where metrics go. W&B works offline with WANDB_MODE=offline and no account.
        seed: Seed of weights, chains and the order of the data.
        max_steps: Optimizer steps of the joint model. More steps improve the classifier but not the chains: with 3000,
            half of the chains that start at noise stay there.
        baseline_max_steps: Optimizer steps of the plain classifier.
        width: Width of the network.
        dropout: Dropout probability before the two linear layers of the network.
        learning_rate: Peak of Adam's one-cycle schedule.
        gradient_clip: Largest gradient norm of the joint model.
        conditional_weight: Weight of -log p(y|x), relative to that of -log p(x).
        energy_l2: Weight of the squared energies.
        data_noise: Standard deviation of Gaussian noise on the images for p(x), in units of x. Chains are least
            accurate in the black margins of the images; noise widens their distribution.
        step_size: Step size of Langevin dynamics, in squared units of x per unit of energy.
        noise_std: Noise of Langevin dynamics, in units of x.
        max_gradient: Clamps each component of the gradient. It limits the length of a step, so that chains do not jump
            between the walls of the box.
        sampler_steps: Langevin steps of each chain per batch.
        buffer_size: Number of persistent chains.
        reinit_prob: Probability that a chain is reinitialized.
        initial: Distribution of the initial points of chains, such as ClassGaussians; by default uniform noise.
        precision: Precision of the network's body.
        evaluate: Evaluate both models, with fresh chains that start in the Gaussians of the classes.
        keep_memory: Keep freed memory in the process, which is faster on a CPU with glibc; see docs/speed.md.
        progress_bar: Show progress bars.
    """

    data: ImageDataModule
    output: Path | None = None
    logger: Literal["csv", "wandb"] = "csv"
    seed: int = 0
    max_steps: int = 2250
    baseline_max_steps: int = 2250
    width: int = 16
    dropout: float = 0.0
    learning_rate: float = 1e-3
    gradient_clip: float = 10.0
    conditional_weight: float = 10.0
    energy_l2: float = 0.05
    data_noise: float = 0.1
    step_size: float = 5.0
    noise_std: float = 0.01
    max_gradient: float = 0.01
    sampler_steps: int = 10
    buffer_size: int = 2000
    reinit_prob: float = 0.05
    initial: Density | None = None
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"
    evaluate: bool = True
    keep_memory: bool = False
    progress_bar: bool = True


def main(options: Options) -> Path:
    """Train both models and evaluate them. Returns the folder with the results."""
    started = time.time()
    folder = results_folder(options.output, type(options.data).__name__.lower())
    if options.keep_memory:
        keep_freed_memory()
    ignored = "does not have many workers|LeafSpec|Checkpoint directory|log Z is unreliable|in eval mode"
    warnings.filterwarnings("ignore", f".*({ignored}).*")
    accuracies = {"baseline": train("baseline", options, folder), "jem": train("jem", options, folder)}
    results = {"val/accuracy": accuracies, "seconds": time.time() - started}
    (folder / "training.json").write_text(json.dumps(results, indent=2))
    print(f"Accuracy on {options.data.val_size} validation images: {accuracies}. Checkpoints are in {folder}")
    if options.evaluate:
        evaluate_both(options, folder)
    print(f"{time.time() - started:.0f} seconds")
    return folder


def train(name: Literal["jem", "baseline"], options: Options, folder: Path) -> float:
    """Train one of the models, save its checkpoint, and return its validation accuracy."""
    L.seed_everything(options.seed, verbose=False)
    joint = name == "jem"
    data = copy.deepcopy(options.data) if joint else variant(options.data, noise_std=0.0, separate_batch_size=None)
    max_steps = options.max_steps if joint else options.baseline_max_steps
    module = make_model(options, joint, max_steps)
    trainer = L.Trainer(
        max_epochs=-1,
        max_steps=max_steps,
        accelerator="auto",
        devices=1,
        precision=options.precision,
        logger=run_logger(options.logger, folder / name, f"{folder.name}-{name}", folder.name, ["SGLD", name]),
        callbacks=make_callbacks(name, folder),
        gradient_clip_val=options.gradient_clip if joint else None,
        enable_progress_bar=options.progress_bar,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(folder / f"{name}.ckpt")
    accuracy = float(trainer.validate(module, data, verbose=False)[0]["val/accuracy"])
    if options.logger == "wandb":
        finish_wandb()
    return accuracy


def make_model(options: Options, joint: bool, max_steps: int) -> JEM:
    """The joint model, or with a generative weight of 0 the plain classifier."""
    data = options.data
    return JEM(
        StridedConvNet(data.support.shape, data.num_classes, options.width, options.dropout),
        data.num_classes,
        data.support,
        SGLD(options.step_size, options.noise_std, options.sampler_steps, max_gradient=options.max_gradient),
        ReplayBuffer(options.buffer_size, options.reinit_prob, copy.deepcopy(options.initial)),
        conditional_weight=options.conditional_weight,
        generative_weight=float(joint),
        energy_l2=options.energy_l2,
        data_noise=options.data_noise if joint else 0.0,
        optimizer=functools.partial(torch.optim.Adam, lr=options.learning_rate),
        lr_scheduler=functools.partial(
            torch.optim.lr_scheduler.OneCycleLR,
            max_lr=options.learning_rate,
            total_steps=max_steps,
            pct_start=0.1,
        ),
    )


def make_callbacks(name: Literal["jem", "baseline"], folder: Path) -> list[Callback]:
    checkpoint = ModelCheckpoint(folder, filename=name, save_last=False, enable_version_counter=False)
    callbacks: list[Callback] = [EMAWeightAveraging(decay=0.995), checkpoint]
    if name == "jem":
        callbacks += [ChainDiagnostics(), DivergenceGuard(), SampleGrid(1, directory=folder, scale=2)]
    return callbacks


def evaluate_both(options: Options, folder: Path) -> None:
    """Evaluate the two checkpoints and print their metrics."""
    metrics = evaluate(
        load_model(folder / "jem.ckpt"),
        variant(options.data, augment="none", noise_std=0.0, separate_batch_size=None),
        load_model(folder / "baseline.ckpt"),
        folder / "evaluation",
        title=f"Evaluation of {folder / 'jem.ckpt'} and {folder / 'baseline.ckpt'}",
        logger=options.logger,
        ood_images=10_000,
        sampler_steps=40,
        initial=ClassGaussians(),
        progress_bar=options.progress_bar,
    )
    print(comparison_table(metrics, names=("JEM", "classifier")))
    print(f"report.html, metrics.json and pictures are in {folder / 'evaluation'}")


def variant(data: ImageDataModule, **changes: Any) -> ImageDataModule:
    """A copy of a data module with other arguments."""
    data = copy.deepcopy(data)
    for name, value in changes.items():
        setattr(data, name, value)
    return data


if __name__ == "__main__":
    main(auto_cli(Options, usage="%(prog)s [options]", as_positional=False, set_defaults={"data": DATA}))
