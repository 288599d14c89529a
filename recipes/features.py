"""Detect unusual inputs by the features of a trained network: ``python recipes/features.py``.

A small network is trained, or loaded, and frozen. A joint energy model of its features is fitted in a minute, and
compared with detectors of pytorch-ood on the same features: digits without a download, or MNIST, FashionMNIST and a
subset of CIFAR-10 with ``--data.name MNIST --data.root DIR``. ``--seeds 5`` prints the means over five networks.
metrics.json, report.html and the networks are in the run's folder.
"""

import functools
import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from jsonargparse import auto_cli
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchmetrics.functional.classification import multiclass_calibration_error
from tqdm import tqdm

from ebm_lightning import MALA, ConditionalEBM, FeatureJEM, ReferenceJumps, evaluate_ood
from ebm_lightning.data import NearAndFar, near_and_far
from ebm_lightning.data.augmentation import shifted
from ebm_lightning.evaluation.feature_scores import FEATURE_SCORES, made_features, ratio_to_reference, typicality
from ebm_lightning.evaluation.loggers import finish_wandb, log_to_wandb, run_logger
from ebm_lightning.evaluation.ood_comparison import OURS, OODResults, compare_scores
from ebm_lightning.evaluation.ood_seeds import findings, markdown_table, mean, mean_and_error, ood_section, table_of
from ebm_lightning.evaluation.report import results_folder
from ebm_lightning.evaluation.report.page import Section, page
from ebm_lightning.modules.cache_features import network_outputs
from ebm_lightning.networks import ConvNet, StridedConvNet, WideResNet
from ebm_lightning.networks.density_head import best_temperature

Metrics = dict[str, float]
RIVALS = ("KNN", "Mahalanobis", "ViM", "plain energy")


@dataclass
class Data:
    """The images.

    Args:
        name: digits needs no download; CIFAR10 is the file cifar10-subset/*.npz below the root.
        root: Folder with the images, also those of out-of-distribution sets. digits works without one.
    """

    name: Literal["digits", "MNIST", "FashionMNIST", "CIFAR10"] = "digits"
    root: Path | None = None


@dataclass(kw_only=True)
class Options:
    """Compare a joint energy model of a network's features with other detectors.

    Args:
        data: Which images, and where they are.
        seeds: Number of networks, each trained and evaluated with another seed.
        first_seed: Seed of the first.
        epochs: Passes over the training images for each network; by default 30 for digits, 20 for CIFAR10, else 2.
        networks: Folder of an earlier run, whose networks are loaded instead of trained.
        max_steps: Training steps of the joint energy model; by default 400 for digits, else 1000.
        temperatures: Temperatures of the annealing that estimates log Z.
        num_chains: Its chains.
        output: New or empty folder for the results; by default the next free runs/features-N.
        logger: wandb also works without an account: set WANDB_MODE=offline.
        progress_bar: Show progress bars.
    """

    data: Data = field(default_factory=Data)
    seeds: int = 1
    first_seed: int = 0
    epochs: int | None = None
    networks: Path | None = None
    max_steps: int | None = None
    temperatures: int = 300
    num_chains: int = 500
    output: Path | None = None
    logger: Literal["csv", "wandb"] = "csv"
    progress_bar: bool = True


def main(options: Options) -> Path:
    """Train, fit and evaluate for each seed, and write the means. Returns the folder."""
    started = time.time()
    folder = results_folder(options.output, "features")
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec|in eval mode|val_dataloader|logger).*")
    runs: list[Metrics] = []
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for seed in tqdm(seeds, "seeds", disable=not options.progress_bar):
        L.seed_everything(seed, verbose=False)
        images = near_and_far(options.data.name, options.data.root)
        network, outcome = trained(images, options, seed, folder)
        metrics, results = run(network, images, options)
        runs.append(metrics | outcome | results.metrics())
        (folder / "metrics.json").write_text(json.dumps({"options": str(options), "runs": runs}, indent=2))
        tables = f"{results.table()}\n{results.table('fpr95')}\n{facts(runs[-1:])}"
        tqdm.write(f"\n{options.data.name}, seed {seed}\n{tables}")
    print(f"\nMeans over {len(runs)} seeds, with the standard error over seeds\n{markdown_table(runs)}\n{facts(runs)}")
    report = folder / "report.html"
    report.write_text(report_page(options.data.name, runs))
    if options.logger == "wandb":
        log_run(options, folder, runs, report)
    print(f"{time.time() - started:.0f} seconds. metrics.json, report.html and networks are in {folder.resolve()}")
    return folder


def trained(images: NearAndFar, options: Options, seed: int, folder: Path) -> tuple[nn.Module, Metrics]:
    """The network of that seed, loaded or trained, in eval mode."""
    name, started, file = options.data.name, time.time(), f"network-{seed}.pt"
    network, cifar = untrained(name, images), name == "CIFAR10"
    if options.networks is not None:
        network.load_state_dict(torch.load(options.networks / file, weights_only=True))
        return network.eval(), {}
    epochs = options.epochs or {"digits": 30, "CIFAR10": 20}.get(name, 2)
    loader = DataLoader(
        TensorDataset(*images.train), 128, shuffle=True, drop_last=True, collate_fn=augmented if cifar else None
    )
    schedule = functools.partial(OneCycleLR, max_lr=5e-3, total_steps=epochs * len(loader)) if cifar else None
    model = ConditionalEBM(
        network,
        images.num_classes,
        optimizer=functools.partial(torch.optim.AdamW, lr=2e-3, weight_decay=0.05 if cifar else 0.01),
        lr_scheduler=schedule,
    )
    L.Trainer(
        max_epochs=epochs,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=options.progress_bar,
    ).fit(model, loader)
    torch.save(network.state_dict(), folder / file)
    return network.eval(), {"seconds of the network": time.time() - started}


def untrained(name: str, images: NearAndFar) -> nn.Module:
    """A small network for these images. That of CIFAR-10 pools its features over the image."""
    shape, num_classes = images.support.shape, images.num_classes
    if name == "CIFAR10":
        return WideResNet(shape[0], num_classes, depth=10, widths=(32, 64, 128), norm="batch", activation="silu")
    return (ConvNet if name == "digits" else StridedConvNet)(shape, num_classes, 16)


def augmented(rows: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A batch of randomly shifted and flipped images, and labels."""
    x, y = default_collate(list(rows))
    return shifted(x, flip=True), y


def run(network: nn.Module, images: NearAndFar, options: Options) -> tuple[Metrics, OODResults]:
    """Fit the model to features of the network, and evaluate it."""
    train, val, test = images.train, images.val, images.test
    few = options.data.name == "digits"  # fewer training steps, so more moves of the chains in each
    model = FeatureJEM(network, images.num_classes, sampler=ReferenceJumps(MALA(0.1, steps=6 if few else 3)))
    steps = options.max_steps or (400 if few else 1000)
    started = time.process_time()
    model.fit(train, val, max_steps=steps, progress_bar=options.progress_bar)
    cpu_seconds = time.process_time() - started
    model.threshold(val)
    log_z = model.estimate_log_z(val, temperatures=options.temperatures, num_chains=options.num_chains)
    results = evaluate_ood(
        model, test, images.near, images.far, train=train, val=val, progress_bar=options.progress_bar
    )
    z, logits, _ = network_outputs(model, test, progress_bar=False)
    with torch.no_grad():
        gain = ratio_to_reference(model, z).double() - log_z.log_z
    error = math.hypot(float(gain.std()) / math.sqrt(len(gain)), log_z.std_err)
    values: Metrics = {
        "CPU seconds of the fit": cpu_seconds,
        "log Z": log_z.log_z,
        "standard error of log Z": log_z.std_err,
        "log Z is reliable": float(log_z.reliable),
        "nats above the Gaussians": float(gain.mean()),
        "standard error of nats": error,
        "false alarms on test data": float(model.is_ood(test[0]).double().mean()),
        **speed(model, test[0]),
        **calibration(model, val, z, logits, test[1]),
        **{f"validation/{name}": value for name, value in choice(model, val[0]).items()},
    }
    return values, results


@torch.no_grad()
def speed(model: FeatureJEM, x: Tensor) -> Metrics:
    """CPU seconds of scoring, divided by those of the network alone; the best of three turns."""

    def seconds(function: Callable[[Tensor], Any]) -> float:
        times = []
        for _ in range(3):
            started = time.process_time()
            for part in x.split(1000):
                function(part)
            times.append(time.process_time() - started)
        return min(times)

    return {"scoring, in forward passes": seconds(lambda p: model.score(p, len(p))) / seconds(model.network)}


@torch.no_grad()
def calibration(model: FeatureJEM, val: tuple[Tensor, Tensor], z: Tensor, network: Tensor, y: Tensor) -> Metrics:
    """Accuracy and calibration error of the network, of the network after temperature scaling, and of the head."""
    scaled = network / best_temperature(network_outputs(model, val, progress_bar=False)[1], val[1])
    logits = {"network": network, "network, temperature-scaled": scaled, "head": model.checked_logits(z)}
    errors = {
        f"ECE of the {name}": float(multiclass_calibration_error(value.softmax(1), y, value.shape[1]))
        for name, value in logits.items()
    }
    accuracies = {name: float((logits[name].argmax(1) == y).double().mean()) for name in ("network", "head")}
    return errors | {f"accuracy of the {name}": value for name, value in accuracies.items()}


@torch.no_grad()
def choice(model: FeatureJEM, x: Tensor) -> Metrics:
    """AUROC of each score on features that are made from those of validation images: what the score was chosen by."""
    z = network_outputs(model, x, progress_bar=False)[0]
    typical = functools.partial(typicality, mean=float(model.feature_score(z).mean()))
    return {
        f"{name}, {kind}": compare_scores(score(model, z), score(model, made), 2)[0]["auroc"]
        for kind, made in made_features(z).items()
        for name, score in (FEATURE_SCORES | {"typicality": typical}).items()
    }


def facts(runs: Sequence[Metrics]) -> str:
    """All other numbers, and where the model is below another detector."""
    scores = [key for key in runs[0] if key.startswith("validation/")]
    lines = [f"{key:60} {mean_and_error(runs, key)}" for key in (*numbers(runs), *scores)]
    return "\n".join([*lines, *findings(runs, OURS, RIVALS)])


def numbers(runs: Sequence[Metrics]) -> list[str]:
    """Names of the numbers that describe the model."""
    return [*(key for key in runs[0] if "/" not in key), f"{OURS}/fit_seconds", f"{OURS}/score_seconds"]


def report_page(name: str, runs: Sequence[Metrics]) -> str:
    """The page: what was found, the detectors, the model, and what its score was chosen by."""
    reliable = f"log Z is reliable for {sum(run['log Z is reliable'] for run in runs):.0f} of {len(runs)} networks."
    model = table_of(runs, "Mean over seeds and standard error", ["value"], {key: [key] for key in numbers(runs)})
    keys = [key.removeprefix("validation/").rsplit(", ", 1) for key in runs[0] if key.startswith("validation/")]
    kinds = list(dict.fromkeys(kind for _, kind in keys))
    rows = {score: [f"validation/{score}, {kind}" for kind in kinds] for score, _ in keys}
    scores = table_of(runs, "AUROC, mean over seeds and standard error", kinds, rows)
    sections = [
        ood_section(runs),
        Section("The model", "Its energy and its classes on test data. log Z and its errors are in nats.", [model]),
        Section("Which score", "Scores on unusual features that are made from those of validation data.", [scores]),
    ]
    return page(f"Features: {name}", [*findings(runs, OURS, RIVALS), reliable], sections)


def log_run(options: Options, folder: Path, runs: Sequence[Metrics], report: Path) -> None:
    """Log the means and the page to W&B."""
    logger: Any = run_logger("wandb", folder, folder.name, None, ["features", options.data.name])
    _ = logger.experiment
    means = {key: mean(runs, key) for key in runs[0]}
    log_to_wandb({"mean over seeds": means}, metrics=means, report=report)
    finish_wandb()


if __name__ == "__main__":
    main(auto_cli(Options, as_positional=False))
