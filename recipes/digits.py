"""Train a density and classifier of handwritten digits: ``python recipes/digits.py``.

The main model is a joint energy model at temperature 1: its chains move in coordinates that are fitted to the pixels,
so log p(x) in bits per dimension means something and samples are samples of p(x). The recipe also trains a plain
classifier and a JEM as published, at a low temperature, and fits densities in closed form. It uses scikit-learn's
bundled 8x8 digits, so nothing is downloaded, prints a table, and writes checkpoints, metrics.json and figures.
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
from tqdm import tqdm

from ebm_lightning import (
    JEM,
    MALA,
    SGLD,
    Adaptation,
    AISLogZ,
    Calibration,
    ChainDiagnostics,
    ClassGaussians,
    Compose,
    EnergyExtremes,
    ErrorBars,
    Euclidean,
    FreshSamples,
    NormalScores,
    OODDetection,
    Quantiles,
    ReferenceJumps,
    ReplayBuffer,
    SampleAgreement,
)
from ebm_lightning.data import Digits
from ebm_lightning.evaluation.closed_form import Floor, closed_form_floors
from ebm_lightning.evaluation.loggers import LoggerName, finish_wandb, log_to_wandb, run_logger
from ebm_lightning.evaluation.report import results_folder, results_table
from ebm_lightning.networks import ConvNet, ThresholdConvNet

Kind = Literal["density", "classifier", "cold"]
OODName = Literal["noise", "shuffled", "inverted", "transposed", "flipped", "interpolated"]
OOD: tuple[OODName, ...] = ("noise", "shuffled", "inverted", "transposed", "flipped", "interpolated")
SHAPE = Digits.support.shape
TRAINING_IMAGES = 1077
NAMES: dict[Kind, str] = {
    "density": "the density, a JEM at temperature 1",
    "classifier": "the classifier, without p(x)",
    "cold": "the cold model, a JEM at a low temperature",
}


def main(
    seed: int = 0,
    output: Path | None = None,
    logger: LoggerName = "csv",
    epochs: int = 112,
    cold_epochs: int = 40,
    batch_size: int = 128,
    width: int = 64,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.3,
    conditional_weight: float = 10.0,
    generative_weight: float = 1.0,
    step_size: float = 0.4,
    sampler_steps: int = 5,
    cycles: int = 2,
    buffer_size: int = 256,
    ood: tuple[OODName, ...] = OOD,
    ais_temperatures: int = 500,
    ais_num_chains: int = 500,
    fresh_steps: int = 400,
    log_checkpoint: bool = False,
    progress_bar: bool = True,
) -> dict[str, float]:
    """Train and evaluate a density of 8x8 digits, a plain classifier, and a JEM at a low temperature.

    Args:
        seed: Seed of the weights, the chains and the data order.
        output: New or empty folder for the results. Default: the next free runs/digits-N.
        logger: Where metrics are logged during training. wandb also works without an account: set WANDB_MODE=offline.
        epochs: Passes over the 1077 training images, for the density and the plain classifier.
        cold_epochs: Passes of the JEM at a low temperature; 0 leaves it out.
        batch_size: Images per batch for p(y|x), and as many for p(x); each training step also moves this many chains.
        width: Channels of the network's convolution.
        learning_rate: Maximum learning rate of AdamW's one-cycle schedule.
        weight_decay: Weight decay of AdamW.
        conditional_weight: Weight of -log p(y|x).
        generative_weight: Weight of -log p(x). 0 trains only the plain classifier.
        step_size: First step size of MALA, in units of u; it adapts to an acceptance rate of 0.6.
        sampler_steps: MALA steps after each jump.
        cycles: Jumps per batch.
        buffer_size: Number of persistent chains.
        ood: Out-of-distribution sets to detect by log p(x).
        ais_temperatures: Temperatures of the annealing that estimates log Z at test time.
        ais_num_chains: Chains of the annealing.
        fresh_steps: Steps of the new chains that are compared with the annealed ones.
        log_checkpoint: Upload the checkpoint to W&B as an artifact.
        progress_bar: Show progress bars, with the loss and the validation accuracy.
    """
    start = time.time()
    folder = results_folder(output, "digits")
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec).*")

    def bar(loop: Iterable[int]) -> Iterable[int]:
        return tqdm(loop, "annealing", disable=not progress_bar, leave=False)

    def density(generative_weight: float, total_steps: int) -> JEM:
        return JEM(
            ThresholdConvNet(SHAPE, Digits.num_classes, width),
            Digits.num_classes,
            Euclidean(SHAPE, reference=ClassGaussians(ridge=0.05, shrinkage=0.1, passes=20)),
            ReferenceJumps(MALA(step_size, sampler_steps), cycles),
            ReplayBuffer(buffer_size, reinit_prob=0.0),
            conditional_weight=conditional_weight,
            generative_weight=generative_weight,
            energy_l2=0.0,
            optimizer=functools.partial(torch.optim.AdamW, lr=learning_rate, weight_decay=weight_decay),
            lr_scheduler=one_cycle(learning_rate, total_steps, 0.1),
            coordinates=Compose([Quantiles(Digits.support, Digits.num_levels, smoothing=8.0), NormalScores(SHAPE)]),
            adaptation=Adaptation(),
        )

    def cold(total_steps: int) -> JEM:
        return JEM(
            ConvNet(SHAPE, Digits.num_classes, 24),
            Digits.num_classes,
            Digits.support,
            SGLD(step_size=0.1, noise_std=0.01, steps=20),
            ReplayBuffer(2000),
            conditional_weight=3.0,
            energy_l2=0.0,
            optimizer=functools.partial(torch.optim.Adam, lr=1e-3),
            lr_scheduler=one_cycle(1e-3, total_steps, 0.05),
        )

    results: dict[str, dict[str, float]] = {}

    def run(name: Kind, max_epochs: int) -> None:
        print(f"Training {NAMES[name]}: {max_epochs} epochs, then testing it", flush=True)
        L.seed_everything(seed, verbose=False)
        directory = folder if name == "density" else folder / name
        data = Digits(64) if name == "cold" else Digits(batch_size, "affine", batch_size)
        steps = max_epochs * (TRAINING_IMAGES // data.batch_size)
        module = cold(steps) if name == "cold" else density(generative_weight if name == "density" else 0.0, steps)
        length = (ais_temperatures, ais_num_chains) if name == "density" else (150, 200)
        ais = AISLogZ(0, *length, num_levels=data.num_levels, directory=directory, progress=bar)
        callbacks: list[Callback] = [
            EMAWeightAveraging(decay=0.99),
            Calibration(directory=directory),
            ErrorBars(),
            EnergyExtremes(directory=directory),
            OODDetection(ood, directory=directory),
            ais,
            ModelCheckpoint(
                directory / "checkpoints", filename="model", enable_version_counter=False, save_on_train_epoch_end=True
            ),
        ]
        if name == "density":
            callbacks += [
                ChainDiagnostics(16),
                SampleAgreement(ais, ais_num_chains, fresh_steps),
                FreshSamples(steps=fresh_steps, directory=directory),
            ]
        trainer = L.Trainer(
            max_epochs=max_epochs,
            devices=1,
            logger=run_logger(
                logger, directory, f"{folder.name}-{name}", folder.name, ["digits", name], log_model=log_checkpoint
            ),
            callbacks=callbacks,
            gradient_clip_val=1.0 if name == "cold" else 10.0,
            check_val_every_n_epoch=min(15, max_epochs),
            log_every_n_steps=8,
            enable_progress_bar=progress_bar,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=data)
        metrics = dict(trainer.test(module, datamodule=data, verbose=False)[0])
        results[name] = metrics
        if logger == "wandb":
            log_to_wandb(results)
            finish_wandb()

    run("classifier", epochs)
    if cold_epochs and generative_weight:
        run("cold", cold_epochs)
    if generative_weight:
        run("density", epochs)
    results = {name: results[name] for name in NAMES if name in results}
    main_model = next(iter(results.values()))
    metrics = main_model | {f"{name}/{key}": v for name, values in results.items() for key, v in values.items()}
    floors = closed_forms()
    metrics |= {f"floor/{name}/bits_per_dim": floor.bits_per_dim for name, floor in floors.items()}
    metrics["seconds"] = time.time() - start
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2))
    print(table(results, floors))
    print(f"{metrics['seconds']:.0f} seconds. Checkpoints, metrics.json, figures and logs are in {folder.resolve()}")
    return metrics


def one_cycle(
    learning_rate: float, steps: int, warmup: float
) -> functools.partial[torch.optim.lr_scheduler.OneCycleLR]:
    return functools.partial(
        torch.optim.lr_scheduler.OneCycleLR, max_lr=learning_rate, total_steps=steps, pct_start=warmup
    )


def closed_forms() -> dict[str, Floor]:
    """Test bits per dimension of densities that need no training."""
    data = Digits()
    data.setup()
    train = data.train.__getitems__(list(range(len(data.train))))
    test: tuple[torch.Tensor, ...] = data.test.tensors
    return closed_form_floors(train, (test[0], test[1]), data.support, data.num_levels)


def table(results: dict[str, dict[str, float]], floors: dict[str, Floor]) -> str:
    """The main metrics of all models side by side, and the densities in closed form."""
    lines = [results_table(results), f"\n{'in closed form':46}{'bits/dim ↓':>13}{'accuracy ↑':>13}"]
    for name, floor in floors.items():
        accuracy = "-" if floor.accuracy is None else f"{floor.accuracy:.4f}"
        lines.append(f"  {name:44}{floor.bits_per_dim:12.4f} {accuracy:>12}")
    return "\n".join(lines)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
