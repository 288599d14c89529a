"""The pictures of a report, with captions, and with texts that say what is seen."""

from collections.abc import Callable, Mapping
from pathlib import Path

from ebm_lightning.callbacks.ood_histogram import Scores
from ebm_lightning.evaluation.report.page import Picture, shown
from ebm_lightning.evaluation.report.ranking import Comparison

Describe = Callable[[str, Mapping[str, float]], str]
"""(name of the model, its metrics) -> what a picture shows."""


def _reliability(name: str, m: Mapping[str, float]) -> str:
    gap, n = shown(m.get("test/ece", float("nan"))), m.get("test/images", 0)
    return (
        f"Bars of the accuracy of {name} in bins of confidence, next to the diagonal of perfect calibration. The mean "
        f"gap between bars and diagonal is {gap}. Below, the fraction of the {n:.0f} test images in each bin."
    )


def _extremes(name: str, m: Mapping[str, float]) -> str:
    mean = shown(m.get("test/energy", 0.0), 2)
    return (
        f"Two grids of test images, each with its label, the class that {name} predicts and its energy. Above, the "
        f"images of lowest energy, below, those of highest. The mean energy is {mean} nats."
    )


def _unconditional(name: str, m: Mapping[str, float]) -> str:
    fid = next((value for key, value in m.items() if key.startswith("samples/fid_")), None)
    known = "" if fid is None else f" The FID of new chains is {shown(fid, 3)}."
    return f"A grid of new samples of {name} on the left, and as many test images on the right.{known}"


def _conditional(name: str, m: Mapping[str, float]) -> str:
    return f"One row for each class: samples of {name} from E(x, y) on the left, test images of the class on the right."


def _path(name: str, m: Mapping[str, float]) -> str:
    state = "reliable" if m.get("ais/reliable") == 1 else "not reliable"
    return (
        f"Lines of the relative effective sample size, the acceptance rate and beta along the annealing of {name}. At "
        f"the end the effective sample size is {shown(m.get('ais/ess', 0.0), 2)}; log Z is {state}."
    )


def _robustness(name: str, m: Mapping[str, float]) -> str:
    lowest = min((value for key, value in m.items() if key.startswith("robust/linf_")), default=None)
    end = "" if lowest is None else f", to {shown(lowest, 3)} under the strongest L-inf attack"
    return (
        f"Lines of the accuracy of {name} against the size of attacks and noise. It falls from "
        f"{shown(m.get('robust/clean', 0.0), 3)}{end}."
    )


FILES: dict[str, tuple[str, Describe]] = {
    "test-reliability.png": ("reliability diagram", _reliability),
    "test-extremes.png": ("test data of lowest and of highest energy", _extremes),
    "samples-unconditional.png": ("samples from E(x)", _unconditional),
    "samples-conditional.png": ("samples from E(x, y)", _conditional),
    "ais-path.png": ("annealed importance sampling", _path),
    "robust-curves.png": ("accuracy under attack and noise", _robustness),
}


def model_pictures(comparison: Comparison, folders: Mapping[str, Path], *files: str) -> list[Picture]:
    """The pictures of each model by file name, those of the same kind next to each other.

    Arguments:
        comparison: The metrics.
        folders: Folder with the pictures of each model, by its name.
        files: Names of files in :data:`FILES`. Those that do not exist are left out.
    """
    pictures = []
    for file in files:
        caption, describe = FILES[file]
        for name in comparison.models:
            path = folders[name] / file
            if path.exists():
                pictures.append(Picture(path, f"{name}: {caption}", describe(name, comparison.results[name])))
    return pictures


def ood_picture(path: Path, name: str, scores: Mapping[str, Scores]) -> Picture:
    """The picture of one out-of-distribution set.

    Arguments:
        path: The file.
        name: Name of the set.
        scores: The scores of each model, by its name.
    """
    seen = [
        f"{model}: the median score is {shown(float(pair.inside.median()), 2)} for test data and "
        f"{shown(float(pair.outside.median()), 2)} for {name}; {pair.title}."
        for model, pair in scores.items()
    ]
    alt = f"Some images of {name}, and below them histograms of log p(x) up to a constant with shared axes. "
    return Picture(
        path, f"{name}: some of its images, and the scores of all models on the same axes", alt + " ".join(seen)
    )
