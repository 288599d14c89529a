"""An honest evaluation of a checkpoint, beside the plain classifier of the same network, as one page.

``python recipes/evaluate.py --checkpoint model.ckpt --baseline baseline.ckpt --data MNIST --data.root DIR`` measures
both with the same callbacks on the same test images, and writes metrics.json, report.html and the pictures to one
folder.
"""

import copy
import functools
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from torch import nn
from tqdm import tqdm

from ebm_lightning import (
    JEM,
    SGLD,
    AISLogZ,
    Box,
    Calibration,
    ConditionalEBM,
    FreshSamples,
    OODDetection,
    Refinement,
    Robustness,
    SampleQuality,
    Support,
)
from ebm_lightning.callbacks.ood_detection import Images
from ebm_lightning.data import OOD_PAIRS, ood_image_sets
from ebm_lightning.features import Penultimate
from ebm_lightning.modules.first_pass import pass_over, undisturbed
from ebm_lightning.ood import OOD_SETS, OODSet
from ebm_lightning.report import Section, evaluation_sections, page, results_folder
from ebm_lightning.scores import approximate_mass, log_density, max_probability, negative_entropy
from ebm_lightning.starts import Start

NO_BASELINE = (
    "No plain classifier was given (--baseline), so that nothing here says what the energy model gained or lost: such "
    "a classifier often does as well on foreign images and in accuracy. Features for FID are those of the model itself."
)
SCORES = (log_density, max_probability, negative_entropy, approximate_mass)
Results = dict[str, dict[str, float]]


def main(
    checkpoint: Path,
    data: L.LightningDataModule,
    baseline: Path | None = None,
    output: Path | None = None,
    classifier: nn.Module | None = None,
    features: nn.Module | None = None,
    ood: tuple[str, ...] | None = None,
    ood_root: Path | None = None,
    logger: Literal["csv", "wandb"] = "csv",
    bins: int = 15,
    ood_images: int = 1000,
    samples: int = 500,
    sample_steps: int = 60,
    start: Start | Literal["model", "reference"] = "model",
    attacked_images: int = 500,
    attack_steps: int = 20,
    linf: tuple[float, ...] = (0.05, 0.1, 0.2),
    l2: tuple[float, ...] = (0.5, 1.0, 2.0),
    noise: tuple[float, ...] = (0.25, 0.5, 1.0),
    refine_steps: tuple[int, ...] = (0, 1, 5, 20),
    ais_temperatures: int = 200,
    ais_chains: int = 100,
    device: str = "auto",
    seed: int = 0,
    progress_bar: bool = True,
) -> dict[str, float]:
    """Measure a JEM or ConditionalEBM and the plain classifier of the same network on test images.

    Args:
        checkpoint: As Lightning wrote it, of a JEM or ConditionalEBM.
        data: The data module whose test images are used, such as Digits or MNIST.
        baseline: Checkpoint of the plain classifier; without it there is no comparison, and the report says so.
        output: Folder for results, new or empty; by default the next free runs/eval-N.
        classifier: The network, where it is not one of this library's and the checkpoint cannot rebuild it.
        features: Maps images to features (N, D) for FID and KID, which are then named after its class; by default the
            input of the last layer of the plain classifier, or of the model's where there is none.
        ood: Real images held against the test images: names such as SVHN, or .npz files in the folder; by default
            those that are usual for the data.
        ood_root: Folder that holds them; by default the data module's.
        logger: Where numbers, pictures and the page go besides; wandb works offline with WANDB_MODE=offline.
        bins: Of the calibration error.
        ood_images: Most images of each set that scores are held against.
        samples: Fresh chains for FID, KID and the Inception score.
        sample_steps: Steps of every fresh chain.
        start: Where fresh chains begin, of both models: where the model's own chains did, the support's reference
            density, or a start such as ClassGaussians, which is fitted here to the training images of ``data`` (with
            the model's own, give it the ``size`` and ``val_size`` of the run).
        attacked_images: Most images that are attacked, made noisy or refined.
        attack_steps: Gradients that each attack follows.
        linf: Radii of the L-inf attack, in units of x.
        l2: Radii of the L2 attack, in units of x.
        noise: Standard deviations of Gaussian noise, in units of x.
        refine_steps: Steps of the sampler on test images before they are classified; an empty list leaves it out.
        ais_temperatures: Steps of the annealing that estimates log Z; 0 leaves it out.
        ais_chains: Its chains.
        device: Lightning's accelerator.
        seed: Of chains, attacks and sets that are drawn.
        progress_bar: Show progress bars.
    """
    began = time.time()
    folder = results_folder(output, "eval")
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec|log Z is unreliable|in eval mode).*")
    paths = {"model": checkpoint} | ({} if baseline is None else {"baseline": baseline})
    models = {name: load(path, classifier) for name, path in paths.items()}
    support, sampler = models["model"].support, getattr(models["model"], "sampler", None) or SGLD.jem()
    judge = copy.deepcopy(models.get("baseline", models["model"]).classifier)
    label = type(features).__name__ if features else "classifier" if baseline else "model"
    pairs = OOD_PAIRS.get(type(data).__name__, ()) if ood is None else ood
    root, levels = ood_root or Path(getattr(data, "root", "data")), getattr(data, "num_levels", None)
    begin = fitted(start, models["model"], data)
    sets = foreign_sets(data, support, pairs, root, ood_images)

    def bar(name: str) -> Callable[[Iterable[int]], Iterable[int]]:
        return functools.partial(tqdm, desc=name, disable=not progress_bar, leave=False)

    def measurements(to: Path) -> list[Callback]:
        made: list[Callback] = [
            Calibration(bins, to),
            OODDetection(sets, SCORES, directory=to, seed=seed, limit=ood_images),
            Robustness(
                linf, l2, noise, attack_steps, attacked_images, directory=to, seed=seed, progress=bar("attacks")
            ),
            SampleQuality(
                features or Penultimate(judge),
                None if features else judge,
                *(label, sampler, sample_steps, samples),
                start=begin,
                seed=seed,
                progress=bar("samples"),
            ),
        ]
        pictures = functools.partial(FreshSamples, start=begin, directory=to, seed=seed)
        if is_pictured(support):
            made.append(pictures(8, 10, sampler, sample_steps, progress=bar("pictures")))
        if refine_steps:
            made.append(Refinement(refine_steps, sampler, attacked_images, seed, bar("refinement")))
        if ais_temperatures and support.log_mass < math.inf:
            estimate = functools.partial(AISLogZ, num_levels=levels, directory=to, seed=seed)
            made.append(estimate(0, ais_temperatures, ais_chains, progress=bar("annealing")))
        return made

    results: Results = {}
    for name in reversed(list(models)):  # the model last: its run is still open for the report
        trainer = L.Trainer(
            accelerator=device,
            devices=1,
            logger=_logger(logger, folder / name, f"{folder.name}-{name}"),
            callbacks=measurements(folder / name),
            enable_progress_bar=progress_bar,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        results[name] = dict(trainer.test(models[name], datamodule=data, verbose=False)[0])
        if logger == "wandb" and name != "model":
            _finish_wandb()
    results = {name: results[name] for name in models}
    images = len(data.test_dataloader().dataset)
    counts = {"test/images": float(images), "test/ece_bins": float(bins), "seconds": time.time() - began}
    metrics = results["model"] | {f"baseline/{k}": v for k, v in results.get("baseline", {}).items()} | counts
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2))
    facts = [
        f"Model: {checkpoint}. Plain classifier: {baseline or 'not given'}.{_other_network(models)}",
        f"Data: all {images} test images of {type(data).__name__}, except where a smaller number is stated; such a "
        "number is spread evenly over them.",
        f"Chains of all models: {sampler}, with {sample_steps} steps from {described(begin)}.",
        *[f"Left out, for its images are not at hand: {name}." for name in pairs if name not in sets],
        f"Seed {seed}; torch {torch.__version__}; {metrics['seconds']:.0f} seconds in all.",
    ]
    sections = evaluation_sections(results, {name: folder / name for name in models}, bins)
    notes = [] if baseline else [Section("No comparison", NO_BASELINE)]
    (folder / "report.html").write_text(page(f"Evaluation of {checkpoint.name}", facts, [*notes, *sections]))
    if logger == "wandb":
        _finish_wandb(metrics, folder / "report.html")
    print(table(results))
    print(f"{metrics['seconds']:.0f} seconds; report.html, metrics.json and pictures are in {folder}")
    return metrics


def load(path: Path, classifier: nn.Module | None) -> ConditionalEBM:
    """The module of a checkpoint: JEM if it names a sampler, else a plain ConditionalEBM.

    Raises:
        ValueError: The checkpoint is of another module, such as the classification RBM.
    """
    arguments = torch.load(path, map_location="cpu", weights_only=True).get("hyper_parameters", {})
    if "num_classes" not in arguments or "num_hidden" in arguments:
        raise ValueError(f"'checkpoint' should be of a JEM or ConditionalEBM with gradients in x, got {path}.")
    kind = JEM if "sampler" in arguments else ConditionalEBM
    given: dict[str, Any] = {} if classifier is None else {"classifier": copy.deepcopy(classifier)}
    return kind.load_from_checkpoint(path, map_location="cpu", weights_only=True, **given).eval()


def fitted(
    start: Start | Literal["model", "reference"], model: ConditionalEBM, data: L.LightningDataModule
) -> Start | None:
    """Where fresh chains begin, None for the reference density; ``data`` gives training images without a trainer."""
    own: Start | None = getattr(getattr(model, "chains", None), "start", None)
    begin = start if isinstance(start, Start) else own if start == "model" else None
    if begin is not None and begin.needs_data:
        with undisturbed(torch.device("cpu")):
            data.prepare_data()
            data.setup("fit")
            batches = enumerate(pass_over(data.train_dataloader()))
            begin.fit((model._checked(batch, i) for i, batch in batches), model.num_classes)
    return begin


def described(start: Start | None) -> str:
    """Where fresh chains begin, in words."""
    if start is None:
        return "the reference density"
    return type(start).__name__ + (", fitted to the training images" if start.needs_data else "")


def is_pictured(support: object) -> bool:
    """Whether its points are images."""
    return isinstance(support, Box) and len(support.shape) == 3 and support.shape[0] in (1, 3)


def foreign_sets(
    data: L.LightningDataModule, support: Support, names: Sequence[str], root: Path, size: int
) -> Mapping[str, OODSet | Images]:
    """What is held against the test images: sets made of them, and real images of ``names`` that are at hand."""
    if not is_pictured(support):
        return {name: OOD_SETS[name] for name in ("noise", "interpolated")}
    levels, download = getattr(data, "num_levels", 256), getattr(data, "download", True)
    return OOD_SETS | ood_image_sets(names, support, root, size, num_levels=levels, download=download)


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """The models side by side, a line for each metric."""
    lines = [f"{'':44}" + "".join(f"{name:>14}" for name in results)]
    for key in results["model"]:
        lines.append(f"{key:44}" + "".join(f"{r.get(key, math.nan):14.4f}" for r in results.values()))
    return "\n".join(lines)


def _other_network(models: Mapping[str, ConditionalEBM]) -> str:
    """A warning where the models are not of one network."""
    shapes = {str([tuple(p.shape) for p in model.classifier.parameters()]) for model in models.values()}
    return "" if len(shapes) == 1 else " THEIR NETWORKS DIFFER, so that not training alone makes the difference."


def _logger(name: Literal["csv", "wandb"], directory: Path, run_name: str) -> Logger:
    if name == "csv":
        return CSVLogger(directory, "logs", "")
    directory.mkdir(parents=True, exist_ok=True)
    return WandbLogger(run_name, directory, project="ebm_lightning")


def _finish_wandb(metrics: Mapping[str, float] | None = None, report: Path | None = None) -> None:
    """Close the run, with the comparison and the report in it."""
    import wandb

    if metrics is not None and report is not None:
        wandb.log({**metrics, "report": wandb.Html(str(report))})
    wandb.finish()


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
