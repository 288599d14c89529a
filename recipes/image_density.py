"""Train a density and classifier of images: ``python recipes/image_density.py --data.root DIR``.

The main model is a joint energy model at temperature 1, relative to an autoregressive density that is fitted first. So
log p(x) in bits per dimension means something, and samples are samples of p(x). The recipe also trains the plain
classifier of the same network, and evaluates both. ``--data FashionMNIST`` and others take other images. Checkpoints,
pictures and the evaluation's report.html and metrics.json are in the run's folder, ``runs/mnist-0`` and so on.
"""

import copy
import functools
import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lightning as L
import torch
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint

from ebm_lightning import (
    JEM,
    Adaptation,
    AutoregressiveDensity,
    Box,
    ChainDiagnostics,
    NoiseRefresh,
    ReplayBuffer,
    SampleGrid,
    evaluate,
)
from ebm_lightning.data import ImageDataModule
from ebm_lightning.evaluation.checkpoints import load_model
from ebm_lightning.evaluation.loggers import finish_wandb, run_logger
from ebm_lightning.evaluation.report import comparison_table, results_folder
from ebm_lightning.networks import StridedConvNet

DATA = {
    "class_path": "ebm_lightning.data.MNIST",
    "init_args": {"batch_size": 128, "separate_batch_size": 128, "augment": "crop"},
}


@dataclass(kw_only=True)
class Options:
    """Train a density of images and the plain classifier of the same network, and evaluate both.

    Args:
        data: The images, such as --data FashionMNIST --data.root DIR. Batches of the joint model: batch_size images for
            p(y|x), with augmentation, and separate_batch_size for p(x), which is also the number of chains per step.
        output: Folder for results, new or empty; by default the next free runs/mnist-N, runs/fashionmnist-N and so on.
        logger: Where metrics go. W&B works offline with WANDB_MODE=offline and no account.
        seed: Seed of weights, chains and the order of the data.
        max_steps: Optimizer steps of both models.
        reference_epochs: Passes over the images to fit the autoregressive density.
        bins: Bins of gray levels of the autoregressive density.
        width: Width of the network.
        dropout: Dropout probability before its two linear layers.
        learning_rate: Peak of AdamW's one-cycle schedule.
        weight_decay: Weight decay of AdamW.
        gradient_clip: Largest gradient norm.
        conditional_weight: Weight of -log p(y|x), relative to that of -log p(x). Below 10 at this learning rate, the
            energies run away from the chains.
        max_gap: Chains run again while their mean energy is this many nats above that of the data.
        sampler_steps: Steps of each chain per batch.
        buffer_size: Number of persistent chains.
        precision: Precision of the network's body.
        evaluate: Evaluate both models.
        temperatures: Temperatures of the annealing that estimates log Z.
        num_chains: Its chains.
        fresh_steps: Steps of new chains, which start at samples of the autoregressive density.
        progress_bar: Show progress bars.
    """

    data: ImageDataModule
    output: Path | None = None
    logger: Literal["csv", "wandb"] = "csv"
    seed: int = 0
    max_steps: int = 2500
    reference_epochs: int = 3
    bins: int = 32
    width: int = 12
    dropout: float = 0.2
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    gradient_clip: float = 10.0
    conditional_weight: float = 50.0
    max_gap: float = 2.0
    sampler_steps: int = 1
    buffer_size: int = 512
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"
    evaluate: bool = True
    temperatures: int = 100
    num_chains: int = 500
    fresh_steps: int = 100
    progress_bar: bool = True


def main(options: Options) -> Path:
    """Train both models and evaluate them. Returns the folder with the results."""
    started = time.time()
    folder = results_folder(options.output, type(options.data).__name__.lower())
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec|Checkpoint directory|in eval mode).*")
    accuracies = {name: train(name, options, folder) for name in ("baseline", "jem")}
    results = {"val/accuracy": accuracies, "seconds": time.time() - started}
    (folder / "training.json").write_text(json.dumps(results, indent=2))
    if options.evaluate:
        evaluate_both(options, folder)
    print(f"{time.time() - started:.0f} seconds; checkpoints, pictures and evaluation/report.html are in {folder}")
    return folder


def make_model(options: Options, joint: bool) -> JEM:
    """The joint model, or with a generative weight of 0 the plain classifier."""
    box = options.data.support
    network = StridedConvNet(box.shape, options.data.num_classes, options.width, options.dropout)
    for parameter in network.layers[-1].parameters():
        torch.nn.init.zeros_(parameter)  # the model begins as its reference density
    reference = AutoregressiveDensity(box, options.data.num_levels, bins=options.bins, epochs=options.reference_epochs)
    return JEM(
        network,
        options.data.num_classes,
        Box(box.low, box.high, box.shape, reference=reference) if joint else box,
        NoiseRefresh(0.5, steps=options.sampler_steps) if joint else None,
        ReplayBuffer(options.buffer_size, reinit_prob=0.0),
        conditional_weight=options.conditional_weight,
        generative_weight=float(joint),
        energy_l2=0.0,
        optimizer=functools.partial(torch.optim.AdamW, lr=options.learning_rate, weight_decay=options.weight_decay),
        lr_scheduler=functools.partial(
            torch.optim.lr_scheduler.OneCycleLR,
            max_lr=options.learning_rate,
            total_steps=options.max_steps,
            pct_start=0.1,
        ),
        adaptation=Adaptation(max_gap=options.max_gap, max_repeats=4) if joint else None,
    )


def train(name: Literal["jem", "baseline"], options: Options, folder: Path) -> float:
    """Train one of the models, save its checkpoint, and return its validation accuracy."""
    L.seed_everything(options.seed, verbose=False)
    joint, data = name == "jem", copy.deepcopy(options.data)
    if not joint:
        data.separate_batch_size = None
    print(f"Training the {'joint energy model' if joint else 'plain classifier'} in {folder}")
    module = make_model(options, joint)
    trainer = L.Trainer(
        max_epochs=-1,
        max_steps=options.max_steps,
        devices=1,
        precision=options.precision,
        logger=run_logger(options.logger, folder / name, f"{folder.name}-{name}", folder.name, ["density", name]),
        callbacks=make_callbacks(name, folder),
        gradient_clip_val=options.gradient_clip,
        enable_progress_bar=options.progress_bar,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(folder / f"{name}.ckpt")
    accuracy = float(trainer.validate(module, data, verbose=False)[0]["val/accuracy"])
    if options.logger == "wandb":
        finish_wandb()
    return accuracy


def make_callbacks(name: Literal["jem", "baseline"], folder: Path) -> list[Callback]:
    checkpoint = ModelCheckpoint(folder, filename=name, save_last=False, enable_version_counter=False)
    callbacks: list[Callback] = [EMAWeightAveraging(decay=0.99), checkpoint]
    if name == "jem":
        callbacks += [ChainDiagnostics(16), SampleGrid(1, directory=folder, scale=2)]
    return callbacks


def evaluate_both(options: Options, folder: Path) -> None:
    """Evaluate the two checkpoints and print their metrics."""
    data = copy.deepcopy(options.data)
    data.augment, data.separate_batch_size = "none", None
    metrics = evaluate(
        load_model(folder / "jem.ckpt"),
        data,
        load_model(folder / "baseline.ckpt"),
        folder / "evaluation",
        logger=options.logger,
        sampler_steps=options.fresh_steps,
        ais_temperatures=options.temperatures,
        ais_num_chains=options.num_chains,
        progress_bar=options.progress_bar,
    )
    print(comparison_table(metrics, names=("JEM", "classifier")))


if __name__ == "__main__":
    main(auto_cli(Options, as_positional=False, set_defaults={"data": DATA}))
