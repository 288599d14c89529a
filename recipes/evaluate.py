"""An honest evaluation of a checkpoint, beside the plain classifier of the same network, as one page.

``python recipes/evaluate.py --checkpoint model.ckpt --baseline baseline.ckpt --data MNIST --root DIR`` measures both
with the same callbacks on the same test images, and writes metrics.json, report.html and the pictures to one folder.
"""

import copy
import functools
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from torch import nn
from tqdm import tqdm

import ebm_lightning.data as datasets
from ebm_lightning import (
    JEM,
    AISLogZ,
    Box,
    Calibration,
    ConditionalEBM,
    FreshSamples,
    OODDetection,
    Refinement,
    Robustness,
    SampleQuality,
)
from ebm_lightning.callbacks.ood_detection import Images
from ebm_lightning.features import Penultimate
from ebm_lightning.ood import OOD_SETS, OODSet
from ebm_lightning.report import Section, evaluation_sections, page
from ebm_lightning.scores import approximate_mass, log_density, max_probability, negative_entropy

NO_BASELINE = (
    "No plain classifier was given (--baseline), so that nothing here says what the energy model gained or lost: such "
    "a classifier often does as well on foreign images and in accuracy. Features for FID are those of the model itself."
)
SCORES = (log_density, max_probability, negative_entropy, approximate_mass)


def main(
    checkpoint: Path,
    data: L.LightningDataModule,
    baseline: Path | None = None,
    root: Path | None = None,
    output: Path | None = None,
    classifier: nn.Module | None = None,
    logger: Literal["csv", "wandb"] = "csv",
    bins: int = 15,
    ood_images: int = 1000,
    samples: int = 500,
    sample_steps: int = 60,
    attacked_images: int = 500,
    attack_steps: int = 20,
    linf: tuple[float, ...] = (0.05, 0.1, 0.2),
    l2: tuple[float, ...] = (0.5, 1.0, 2.0),
    noise: tuple[float, ...] = (0.25, 0.5, 1.0),
    refine_steps: tuple[int, ...] = (),
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
        root: Folder that holds the images, of the data and of other sets; by default the data module's own.
        output: Folder for results, new or empty; by default the next free runs/eval-N.
        classifier: The network, where it is not one of this library's and the checkpoint cannot rebuild it.
        logger: Where numbers and pictures go besides; wandb works offline with WANDB_MODE=offline and no account.
        bins: Of the calibration error.
        ood_images: Most images of each set that scores are held against.
        samples: Fresh chains for FID, KID and the Inception score.
        sample_steps: Steps of every fresh chain.
        attacked_images: Most images that are attacked or made noisy.
        attack_steps: Gradients that each attack follows.
        linf: Radii of the L-inf attack, in units of x.
        l2: Radii of the L2 attack, in units of x.
        noise: Standard deviations of Gaussian noise, in units of x.
        refine_steps: Steps of the sampler on the test images before they are classified; none leaves it out.
        ais_temperatures: Steps of the annealing that estimates log Z; 0 leaves it out.
        ais_chains: Its chains.
        device: Lightning's accelerator.
        seed: Of chains, attacks and sets that are drawn.
        progress_bar: Show progress bars.
    """
    start = time.time()
    folder = _folder(output)
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec|log Z is unreliable|in eval mode).*")
    if root is not None and hasattr(data, "root"):
        data.root = root
    models = {"model": load(checkpoint, classifier)}
    if baseline is not None:
        models["baseline"] = load(baseline, classifier)
    support, sampler = models["model"].support, getattr(models["model"], "sampler", None)
    judge = copy.deepcopy(models.get("baseline", models["model"]).classifier)
    sets = ood_sets(data, models["model"], root or Path(getattr(data, "root", "data")), ood_images)
    pictured = isinstance(support, Box) and len(support.shape) == 3

    def bar(name: str) -> Callable[[Iterable[int]], Iterable[int]]:
        return functools.partial(tqdm, desc=name, disable=not progress_bar, leave=False)

    def callbacks(directory: Path) -> list[Callback]:
        chosen: list[Callback] = [
            Calibration(bins, directory),
            OODDetection(sets, SCORES, directory=directory, seed=seed, limit=ood_images),
            Robustness(
                linf, l2, noise, attack_steps, attacked_images, directory=directory, seed=seed, progress=bar("attacks")
            ),
            SampleQuality(
                Penultimate(judge),
                judge,
                "classifier" if baseline else "model",
                sampler,
                sample_steps,
                samples,
                seed=seed,
                progress=bar("chains"),
            ),
        ]
        if pictured:
            chosen.append(FreshSamples(8, 10, sampler, sample_steps, directory=directory, seed=seed))
        if refine_steps:
            chosen.append(Refinement(refine_steps, sampler, attacked_images, seed, bar("refinement")))
        if ais_temperatures and support.log_mass < math.inf:
            levels = getattr(data, "num_levels", None)
            chosen.append(
                AISLogZ(
                    0,
                    ais_temperatures,
                    ais_chains,
                    num_levels=levels,
                    directory=directory,
                    seed=seed,
                    progress=bar("log Z"),
                )
            )
        return chosen

    results: dict[str, dict[str, float]] = {}
    for name in reversed(list(models)):  # the model last: its run is still open for the report
        directory = folder / name
        trainer = L.Trainer(
            accelerator=device,
            devices=1,
            logger=_logger(logger, directory, f"{folder.name}-{name}"),
            callbacks=callbacks(directory),
            enable_progress_bar=progress_bar,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        results[name] = dict(trainer.test(models[name], datamodule=data, verbose=False)[0])
        if logger == "wandb" and name != "model":
            _finish_wandb()
    metrics = results["model"] | {f"baseline/{k}": v for k, v in results.get("baseline", {}).items()}
    images = len(data.test_dataloader().dataset)
    metrics |= {"test/images": float(images), "seconds": time.time() - start}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2))
    facts = [
        f"Checkpoint {checkpoint}; plain classifier {baseline or 'not given'}.",
        f"{type(data).__name__}: all {images} test images, except where a smaller number is stated.",
        f"Chains: {sampler or 'SGLD as in the JEM paper'}, with {sample_steps} steps.",
        f"Seed {seed}, torch {torch.__version__}, {metrics['seconds']:.0f} seconds in all.",
    ]
    note = [] if baseline else [Section("No comparison", NO_BASELINE)]
    report = folder / "report.html"
    ordered = {name: results[name] for name in models}
    found = evaluation_sections(ordered, {name: folder / name for name in models}, bins)
    report.write_text(page(f"Evaluation of {checkpoint.name}", facts, [*note, *found]))
    if logger == "wandb":
        _finish_wandb(report)
    print(table(ordered))
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


def ood_sets(data: L.LightningDataModule, model: ConditionalEBM, root: Path, limit: int) -> dict[str, OODSet | Images]:
    """What is held against the test images: sets made of them, and test images of other data where they can be had."""
    images = len(model.support.shape or ()) == 3
    made: dict[str, OODSet | Images] = {
        name: make for name, make in OOD_SETS.items() if images or name in ("noise", "inverted", "interpolated")
    }
    pairs = getattr(datasets, "OOD_PAIRS", {}).get(type(data).__name__, ())
    if images and pairs:
        levels = getattr(data, "num_levels", 256)
        made |= getattr(datasets, "ood_image_sets")(pairs, model.support, root, limit, num_levels=levels)  # noqa: B009
    return made


def table(results: dict[str, dict[str, float]]) -> str:
    """The models side by side, a line for each metric."""
    lines = [f"{'':44}" + "".join(f"{name:>14}" for name in results)]
    for key in results["model"]:
        lines.append(f"{key:44}" + "".join(f"{r.get(key, math.nan):14.4f}" for r in results.values()))
    return "\n".join(lines)


def _folder(output: Path | None) -> Path:
    """The folder to write to, made; never one that holds anything.

    Raises:
        ValueError: ``output`` is not empty.
    """
    if output is None:
        output = next(p for n in range(10**6) if not (p := Path("runs") / f"eval-{n}").exists())
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"'output' should be a new or empty folder, got {output}, which holds results. Name another.")
    output.mkdir(parents=True, exist_ok=True)
    return output


def _logger(name: Literal["csv", "wandb"], directory: Path, run_name: str) -> Logger:
    if name == "csv":
        return CSVLogger(directory, "logs", "")
    directory.mkdir(parents=True, exist_ok=True)
    return WandbLogger(run_name, directory, project="ebm_lightning")


def _finish_wandb(report: Path | None = None) -> None:
    """Close the run, with the report in it."""
    import wandb

    if report is not None:
        wandb.log({"report": wandb.Html(str(report))})
    wandb.finish()


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
