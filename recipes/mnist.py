"""Train a density and classifier of images: ``python recipes/mnist.py --data.root DIR``.

The main model is a joint energy model at temperature 1, relative to an autoregressive density that is fitted first, and
trained to tell images from samples of that density. So log p(x) in bits per dimension means something, and chains that
start at samples of the autoregressive density end at samples of the model. The recipe also trains the plain classifier
of the same network, and evaluates both. For other images there are ``--config recipes/fashionmnist.yaml`` and
``--config recipes/cifar10.yaml``. Checkpoints, pictures and the evaluation's report.html and metrics.json are in the
run's folder, ``runs/mnist-0`` and so on.
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
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from ebm_lightning import (
    AutoregressiveDensity,
    Box,
    ConditionalEBM,
    NoiseContrastiveJEM,
    NoiseRefresh,
    ReplayBuffer,
    evaluate,
)
from ebm_lightning.data import ImageDataModule
from ebm_lightning.evaluation.checkpoints import load_model
from ebm_lightning.evaluation.loggers import finish_wandb, run_logger
from ebm_lightning.evaluation.report import comparison_table, results_folder
from ebm_lightning.networks import SplitLogits, StridedConvNet

DATA = {
    "class_path": "ebm_lightning.data.MNIST",
    "init_args": {"batch_size": 128, "separate_batch_size": 128, "augment": "crop"},
}


@dataclass(kw_only=True)
class Options:
    """Train a density of images and the plain classifier of the same network, and evaluate both.

    Args:
        data: The images. Batches of the joint model: batch_size images for p(y|x), with augmentation, and
            separate_batch_size for p(x), beside as many samples of the autoregressive density.
        output: Folder for results, new or empty; by default the next free runs/mnist-N, runs/fashionmnist-N and so on.
        logger: Where metrics go. W&B works offline with WANDB_MODE=offline and no account.
        seed: Seed of weights, samples and the order of the data.
        max_steps: Optimizer steps of both models.
        reference_epochs: Passes over the images to fit the autoregressive density.
        reference_batch_size: Images for each of its training steps.
        bins: Bins of gray levels of the autoregressive density.
        components: Logistic distributions of each pixel, in place of bins, for natural images.
        reference_samples: Number of its samples, which are drawn once.
        width: Width of the network.
        dropout: Dropout probability before its two linear layers.
        bound: Bound of the log density relative to the autoregressive density, in nats.
        learning_rate: Peak of AdamW's one-cycle schedule.
        weight_decay: Weight decay of AdamW.
        gradient_clip: Largest gradient norm.
        conditional_weight: Weight of -log p(y|x), relative to that of the loss of p(x).
        precision: Precision of the network's body.
        evaluate: Evaluate both models.
        temperatures: Temperatures of the annealing that estimates log Z; by default as many as its path needs.
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
    reference_batch_size: int = 64
    bins: int = 32
    components: int | None = None
    reference_samples: int = 10_000
    width: int = 16
    dropout: float = 0.2
    bound: float = 8.0
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    gradient_clip: float = 10.0
    conditional_weight: float = 5.0
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    evaluate: bool = True
    temperatures: int | None = None
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


def make_network(options: Options, outputs: int) -> StridedConvNet:
    return StridedConvNet(options.data.support.shape, outputs, options.width, options.dropout)


def make_classifier(options: Options) -> ConditionalEBM:
    """The plain classifier."""
    return ConditionalEBM(
        make_network(options, options.data.num_classes),
        options.data.num_classes,
        options.data.support,
        **optimization(options),
    )


def make_density(options: Options) -> NoiseContrastiveJEM:
    """The joint model, with one output more: its log density relative to the autoregressive density."""
    box, classes = options.data.support, options.data.num_classes
    reference = AutoregressiveDensity(
        box,
        options.data.num_levels,
        bins=options.bins,
        components=options.components,
        epochs=options.reference_epochs,
        batch_size=options.reference_batch_size,
    )
    return NoiseContrastiveJEM(
        SplitLogits(make_network(options, classes + 1), options.bound),
        classes,
        Box(box.low, box.high, box.shape, reference=reference),
        NoiseRefresh(0.5, steps=options.fresh_steps),
        ReplayBuffer(options.reference_samples, reinit_prob=0.0),
        conditional_weight=options.conditional_weight,
        **optimization(options),
    )


def optimization(options: Options) -> dict[str, Any]:
    """AdamW in one cycle."""
    rate, one_cycle = options.learning_rate, torch.optim.lr_scheduler.OneCycleLR
    return {
        "optimizer": functools.partial(torch.optim.AdamW, lr=rate, weight_decay=options.weight_decay),
        "lr_scheduler": functools.partial(one_cycle, max_lr=rate, total_steps=options.max_steps, pct_start=0.1),
    }


def train(name: Literal["jem", "baseline"], options: Options, folder: Path) -> float:
    """Train one of the models, save its checkpoint, and return its validation accuracy."""
    L.seed_everything(options.seed, verbose=False)
    joint, data = name == "jem", copy.deepcopy(options.data)
    if not joint:
        data.separate_batch_size = None
    print(f"Training the {'joint energy model' if joint else 'plain classifier'} in {folder}")
    module = make_density(options) if joint else make_classifier(options)
    trainer = L.Trainer(
        max_epochs=-1,
        max_steps=options.max_steps,
        devices=1,
        precision=options.precision,
        logger=run_logger(options.logger, folder / name, f"{folder.name}-{name}", folder.name, ["density", name]),
        callbacks=[
            EMAWeightAveraging(decay=0.995),
            ModelCheckpoint(folder, filename=name, save_last=False, enable_version_counter=False),
        ],
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
