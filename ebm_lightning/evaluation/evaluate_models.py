"""Evaluation of a model, and of a plain classifier as its baseline, in one function."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import nn

from ebm_lightning.callbacks.ood_histogram import plot_scores
from ebm_lightning.evaluation.comparison import Measured, compared
from ebm_lightning.evaluation.inputs import (
    AnyData,
    Initial,
    OODChoice,
    feature_network,
    initial_density,
    labeled_data,
    ood_sources,
)
from ebm_lightning.evaluation.loggers import check_logger, finish_wandb, log_to_wandb
from ebm_lightning.evaluation.measurements import Measurements, Settings
from ebm_lightning.evaluation.names import model_names
from ebm_lightning.evaluation.report import (
    Comparison,
    Picture,
    Section,
    Verdict,
    evaluation_sections,
    page,
    remove_if_empty,
    results_folder,
    verdicts,
)
from ebm_lightning.evaluation.report.facts import evaluation_facts
from ebm_lightning.evaluation.report.pictures import ood_picture
from ebm_lightning.evaluation.runs import run_all
from ebm_lightning.evaluation.scores import log_density
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.samplers import SGLD
from ebm_lightning.supports import Binary, Support

NO_BASELINE = (
    "No baseline was given, so the report does not show what the energy model gains or loses. A plain classifier often "
    "reaches the same accuracy and detects out-of-distribution images as well. FID and KID use features of the model "
    "itself."
)


def evaluate(
    model: ConditionalEBM,
    data: AnyData,
    baseline: ConditionalEBM | None = None,
    output: Path | str | None = None,
    *,
    title: str | None = None,
    features: nn.Module | None = None,
    ood: OODChoice = None,
    ood_root: Path | None = None,
    logger: Literal["csv", "wandb"] = "csv",
    bins: int = 15,
    ood_images: int = 1000,
    samples: int = 500,
    sampler_steps: int = 60,
    initial: Initial = "model",
    attacked_images: int = 500,
    attack_steps: int = 20,
    linf: tuple[float, ...] = (0.05, 0.1, 0.2),
    l2: tuple[float, ...] = (0.5, 1.0, 2.0),
    noise: tuple[float, ...] = (0.25, 0.5, 1.0),
    refine_steps: tuple[int, ...] = (0, 1, 5, 20),
    ais_temperatures: int | None = None,
    ais_num_chains: int = 100,
    device: str = "auto",
    seed: int = 0,
    progress_bar: bool = True,
) -> dict[str, float]:
    """Measure a model, and a plain classifier as its baseline, on test images; write a report.

    Measures accuracy, calibration, out-of-distribution detection, robustness, sample quality, refinement and log Z with
    the callbacks of this library, and writes metrics.json, report.html and the pictures to a folder. Both models get
    the same images, settings and seed. Their train or eval mode, device and trainer, and the global random states, are
    restored afterwards.

    Arguments:
        model: The model, such as a JEM.
        data: A data module; or a loader or dataset of test images and labels; or both as tensors or arrays. Of several
            test loaders the first is used.
        baseline: The plain classifier to compare with. If it is left out, the report states that nothing was compared.
        output: Folder for the results, new or empty; by default the next free runs/eval-N.
        title: Title of the report.
        features: Maps images to features (N, D) for FID and KID, whose metrics are then named after its class; by
            default the input of the last linear layer of the baseline, or of the model without a baseline. If there is
            no linear layer, the images themselves.
        ood: Out-of-distribution images: names such as SVHN or of .npz files in ``ood_root``, or a mapping from names to
            images in the model's support; by default the sets that are commonly used for the data. Sets made from the
            test images are always added, see :data:`ebm_lightning.evaluation.OOD_SETS`.
        ood_root: Folder with the out-of-distribution images; by default that of the data module.
        logger: Where results are also logged. W&B works offline with WANDB_MODE=offline.
        bins: Bins of the calibration error.
        ood_images: Largest number of images of each out-of-distribution set.
        samples: Fresh chains for FID, KID and Inception score.
        sampler_steps: Steps of each fresh chain.
        initial: Where fresh chains of both models start: as the model's own chains, at the support's reference density,
            or at a density such as ClassGaussians. A copy of one that is not fitted is fitted to the training images of
            ``data`` (use the ``size`` and ``val_size`` of training).
        attacked_images: Largest number of images to attack, add noise to, or refine.
        attack_steps: Gradient steps of each attack.
        linf: Radii of the L-inf attack, in units of x.
        l2: Radii of the L2 attack, in units of x.
        noise: Standard deviations of Gaussian noise, in units of x.
        refine_steps: Sampler steps on test images before they are classified; empty to leave refinement out.
        ais_temperatures: Temperatures of annealed importance sampling of log Z, by default as many as its path needs; 0
            to leave it out.
        ais_num_chains: Chains of annealed importance sampling.
        device: Lightning's accelerator.
        seed: Seed of chains, attacks and random out-of-distribution sets.
        progress_bar: Show progress bars.

    Returns:
        All metrics by name. Those of the baseline begin with ``baseline/``. ``compared/<metric>`` is the model's value
        minus the baseline's, and ``<metric>_std_err`` a standard error from the number of images.

    Raises:
        ValueError: An argument is out of its range, or the models do not fit together.
    """
    started = time.time()
    data = labeled_data(data)
    settings = Settings(
        bins=bins,
        ood_images=ood_images,
        samples=samples,
        sampler_steps=sampler_steps,
        attacked_images=attacked_images,
        attack_steps=attack_steps,
        linf=linf,
        l2=l2,
        noise=noise,
        refine_steps=refine_steps,
        ais_temperatures=ais_temperatures,
        ais_num_chains=ais_num_chains,
        seed=seed,
        progress_bar=progress_bar,
    )
    models = {"model": model} | ({} if baseline is None else {"baseline": baseline})
    _check_models(models)
    check_logger(logger)
    density, network = initial_density(initial, model, data), feature_network(features, models)
    folder = results_folder(output, "eval")
    measurements = Measurements(
        settings,
        model.support,
        model.domain,
        getattr(model, "sampler", None) or SGLD.jem(),
        density,
        *ood_sources(ood, data, model.domain, ood_root, ood_images),
        network,
        getattr(data, "num_levels", None),
    )
    try:
        measured = run_all(models, data, measurements, folder, logger, device)
    finally:
        remove_if_empty(folder)
    metrics = _all_metrics(measured, bins) | {"test/ece_bins": float(bins), "seconds": time.time() - started}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2))
    title = title or f"Evaluation of {type(model).__name__}"
    facts = evaluation_facts(models, data, measurements, metrics)
    results, found = write_report(folder, title, facts, measured, models, metrics, bins)
    if logger == "wandb":
        log_to_wandb(results, metrics=metrics, verdicts=found, report=folder / "report.html")
        finish_wandb()
    return metrics


def write_report(
    folder: Path,
    title: str,
    facts: list[str],
    measured: Mapping[str, Measured],
    models: Mapping[str, ConditionalEBM],
    metrics: Mapping[str, float],
    bins: int,
) -> tuple[dict[str, dict[str, float]], list[Verdict]]:
    """Write report.html. Returns the metrics of each model by its name, and the verdicts."""
    names = model_names(models)
    results = {names[key]: one.metrics for key, one in measured.items()}
    why = {names[key]: one.why for key, one in measured.items() if one.why}
    comparison = Comparison(results, metrics)
    pictures = ood_pictures(folder, {names[key]: one for key, one in measured.items()}, models["model"].domain)
    sections = evaluation_sections(comparison, {names[key]: folder / key for key in measured}, bins, pictures, why)
    notes = [] if "baseline" in models else [Section("No comparison", NO_BASELINE)]
    found = verdicts(comparison, why)
    (folder / "report.html").write_text(page(title, facts, [*notes, *sections], found))
    return results, found


def ood_pictures(folder: Path, measured: Mapping[str, Measured], domain: Support) -> list[Picture]:
    """Write ``ood-<set>.png`` for each set, with the scores of all models on the same axes."""
    pictures = []
    first = next(iter(measured.values()))
    for name, score in first.scores:
        if score == log_density.__name__:
            scores = {model: one.scores[name, score] for model, one in measured.items()}
            path = folder / f"ood-{name.replace('/', '-')}.png"
            plot_scores(scores, name, first.examples[name], domain, score).savefig(path, dpi=120)
            pictures.append(ood_picture(path, name, scores))
    return pictures


def _all_metrics(measured: Mapping[str, Measured], bins: int) -> dict[str, float]:
    """The metrics of all models, and the differences of the two, in one dictionary."""
    metrics = {
        f"{'' if key == 'model' else f'{key}/'}{name}": value
        for key, one in measured.items()
        for name, value in one.metrics.items()
    }
    return metrics | (compared(measured["model"], measured["baseline"], bins) if "baseline" in measured else {})


def _check_models(models: Mapping[str, ConditionalEBM]) -> None:
    domain = models["model"].domain if isinstance(models["model"], ConditionalEBM) else None
    for name, model in models.items():
        if not isinstance(model, ConditionalEBM):
            raise ValueError(
                f"'{name}' should be a JEM or a ConditionalEBM, got {type(model).__name__}. Wrap a classifier: "
                "ConditionalEBM(classifier, num_classes, support)."
            )
        if isinstance(model.support, Binary):
            raise ValueError(f"'{name}' should have gradients in x, got the support Binary. Use a Box.")
        if type(model.domain) is not type(domain) or model.domain.shape != domain.shape:
            raise ValueError(
                f"'{name}' should have the domain of the model, {domain}, got {model.domain}. Wrap its classifier: "
                f"ConditionalEBM({name}.classifier, {name}.num_classes, model.support, "
                "coordinates=model.coordinates)."
            )
