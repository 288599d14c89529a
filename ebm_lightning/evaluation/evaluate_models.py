"""Evaluation of a model, and of a plain classifier as its baseline, in one function."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from ebm_lightning.evaluation.inputs import Data, Initial, OODChoice, feature_network, initial_density, ood_sources
from ebm_lightning.evaluation.measurements import Measurements, Settings
from ebm_lightning.evaluation.report import Section, evaluation_sections, page, results_folder
from ebm_lightning.evaluation.report.facts import evaluation_facts
from ebm_lightning.evaluation.runs import LoggerName, check_logger, finish_wandb, run_all
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.samplers import SGLD
from ebm_lightning.supports import Binary

NO_BASELINE = (
    "No baseline was given, so the report does not show what the energy model gains or loses. A plain classifier often "
    "reaches the same accuracy and detects out-of-distribution images as well. FID and KID use features of the model "
    "itself."
)


def evaluate(
    model: ConditionalEBM,
    data: Data,
    baseline: ConditionalEBM | None = None,
    output: Path | str | None = None,
    *,
    title: str | None = None,
    features: nn.Module | None = None,
    ood: OODChoice = None,
    ood_root: Path | None = None,
    logger: LoggerName = "csv",
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
    ais_temperatures: int = 200,
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
        data: A data module, or a loader of test images and labels.
        baseline: The plain classifier to compare with. If it is left out, the report states that nothing was compared.
        output: Folder for the results, new or empty; by default the next free runs/eval-N.
        title: Title of the report.
        features: Maps images to features (N, D) for FID and KID, whose metrics are then named after its class; by
            default the input of the last linear layer of the baseline, or of the model without a baseline.
        ood: Out-of-distribution images: names such as SVHN or of .npz files in ``ood_root``, or a mapping from names to
            images in the model's support; by default the sets that are commonly used for the data. Sets made from the
            test images are always added, see :data:`ebm_lightning.evaluation.OOD_SETS`.
        ood_root: Folder with the out-of-distribution images; by default that of the data module.
        logger: Where metrics, pictures and the report are also logged. W&B works offline with WANDB_MODE=offline.
        bins: Bins of the calibration error.
        ood_images: Largest number of images of each out-of-distribution set.
        samples: Fresh chains for FID, KID and Inception score.
        sampler_steps: Steps of each fresh chain.
        initial: Distribution of the initial points of fresh chains of both models: that of the model's own chains, the
            support's reference density, or a density such as ClassGaussians. One that is not fitted is copied, and the
            copy is fitted to the training images of ``data`` (use the ``size`` and ``val_size`` of the training run).
        attacked_images: Largest number of images to attack, add noise to, or refine.
        attack_steps: Gradient steps of each attack.
        linf: Radii of the L-inf attack, in units of x.
        l2: Radii of the L2 attack, in units of x.
        noise: Standard deviations of Gaussian noise, in units of x.
        refine_steps: Sampler steps on test images before they are classified; empty to leave refinement out.
        ais_temperatures: Temperatures of annealed importance sampling of log Z; 0 to leave it out.
        ais_num_chains: Chains of annealed importance sampling.
        device: Lightning's accelerator.
        seed: Seed of chains, attacks and random out-of-distribution sets.
        progress_bar: Show progress bars.

    Returns:
        All metrics by name. Those of the baseline begin with ``baseline/``.

    Raises:
        ValueError: An argument is out of its range, or the models do not fit together.
    """
    started = time.time()
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
    results = run_all(models, data, measurements, folder, logger, device)
    counts = {"test/images": float(results.images), "test/ece_bins": float(bins), "seconds": time.time() - started}
    metrics = _with_prefixes(results.metrics) | counts
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2))
    facts = evaluation_facts(models, data, measurements, metrics)
    sections = evaluation_sections(results.metrics, {name: folder / name for name in models}, bins, results.why)
    notes = [] if baseline else [Section("No comparison", NO_BASELINE)]
    title = title or f"Evaluation of {type(model).__name__}"
    (folder / "report.html").write_text(page(title, facts, [*notes, *sections]))
    if logger == "wandb":
        finish_wandb(metrics, folder / "report.html")
    return metrics


def _with_prefixes(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The metrics of all models in one dictionary."""
    prefixes = {name: "" if name == "model" else f"{name}/" for name in results}
    return {prefixes[name] + key: value for name, metrics in results.items() for key, value in metrics.items()}


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
