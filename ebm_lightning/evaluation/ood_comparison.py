"""Out-of-distribution detection on the features of a trained network: a model compared with other detectors."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ebm_lightning.evaluation.bootstrap import Interval, bootstrap_intervals
from ebm_lightning.evaluation.error_bars import Z
from ebm_lightning.evaluation.feature_detectors import Detector, NetworkOutputs, OfModel, pytorch_ood_detectors
from ebm_lightning.evaluation.metrics import OODScores
from ebm_lightning.modules import FeatureJEM
from ebm_lightning.modules.cache_features import network_outputs
from ebm_lightning.modules.loaders import Data

METRICS = ("auroc", "aupr_in", "aupr_out", "fpr95")
OURS = "FeatureJEM"


@dataclass(frozen=True)
class OODRow:
    """How well one detector finds one set.

    Attributes:
        detector, data: Names of the detector and of the set.
        near: Whether the set is close to the training data.
        values: ``auroc``, ``aupr_in``, ``aupr_out`` and ``fpr95``, as :class:`OODScores` defines them.
        intervals: 95 % intervals of these, from the number of inputs: DeLong's for AUROC, the bootstrap for the others.
    """

    detector: str
    data: str
    near: bool
    values: dict[str, float]
    intervals: dict[str, Interval]


@dataclass
class OODResults:
    """What :func:`evaluate_ood` measured.

    Attributes:
        rows: One for each detector and set.
        fit_seconds: Of each detector, on features that are computed already. For our model those of its last ``fit``.
        score_seconds: For 10 000 inputs, of each detector, without the pass through the network.
        forward_seconds: Of the pass of 10 000 inputs through the network, which all detectors share.
    """

    rows: list[OODRow] = field(default_factory=list)
    fit_seconds: dict[str, float] = field(default_factory=dict)
    score_seconds: dict[str, float] = field(default_factory=dict)
    forward_seconds: float = 0.0

    def metrics(self) -> dict[str, float]:
        """All numbers by name, such as ``KNN/SVHN/auroc``, with ``.../auroc_low`` and ``.../auroc_high``."""
        values: dict[str, float] = {"forward_seconds": self.forward_seconds}
        for row in self.rows:
            name = f"{row.detector}/{row.data}"
            values |= {f"{name}/{metric}": value for metric, value in row.values.items()}
            for metric, (low, high) in row.intervals.items():
                values |= {f"{name}/{metric}_low": low, f"{name}/{metric}_high": high}
        values |= {f"{name}/fit_seconds": seconds for name, seconds in self.fit_seconds.items()}
        return values | {f"{name}/score_seconds": seconds for name, seconds in self.score_seconds.items()}

    def table(self, metric: str = "auroc") -> str:
        """One line for each detector, with a metric of each set and its interval, and seconds.

        Arguments:
            metric: ``auroc``, ``aupr_in``, ``aupr_out`` or ``fpr95``.

        Raises:
            ValueError: There is no such metric.
        """
        if metric not in METRICS:
            raise ValueError(f"'metric' should be one of {', '.join(METRICS)}, got {metric!r}.")
        sets = list(dict.fromkeys((row.data, row.near) for row in self.rows))
        heads = [f"{name} ({'near' if near else 'far'})" for name, near in sets]
        lines = [" ".join([f"{metric:18}", *(f"{head:>24}" for head in heads), f"{'fit s':>8}", f"{'score s':>8}"])]
        for detector in dict.fromkeys(row.detector for row in self.rows):
            cells = [_cell(row, metric) for row in self.rows if row.detector == detector]
            seconds = [self.fit_seconds[detector], self.score_seconds[detector]]
            lines.append(" ".join([f"{detector:18}", *(f"{c:>24}" for c in cells), *(f"{s:8.2f}" for s in seconds)]))
        return "\n".join([*lines, f"One pass of 10 000 inputs through the network takes {self.forward_seconds:.2f} s."])


def evaluate_ood(
    model: FeatureJEM,
    in_test: Data,
    near: Mapping[str, Data],
    far: Mapping[str, Data],
    *,
    train: Data,
    val: Data,
    detectors: Mapping[str, Detector] | None = None,
    resamples: int = 200,
    max_rows: int = 1_000_000,
    progress_bar: bool = True,
) -> OODResults:
    """Compare a model with other detectors on the features of its network, each set of inputs passed through it once.

    Arguments:
        model: A fitted model.
        in_test: In-distribution test data: a loader, dataset or tensors. Labels are not needed.
        near: Sets that are close to the training data, by name, such as letters for digits.
        far: Sets that are far from the training data, by name, such as photographs for digits.
        train: Inputs and labels to fit detectors to.
        val: Inputs and labels to choose temperatures on.
        detectors: Detectors by name; by default eight of pytorch-ood. The model is always among the results.
        resamples: Resamples of the bootstrap.
        max_rows: Largest number of rows of a set to keep in memory.
        progress_bar: Show progress bars.

    Raises:
        ValueError: There is no out-of-distribution set, one name is in both, or the training data have no labels.
    """
    sets = _checked_sets(near, far)
    options: dict[str, Any] = {"max_rows": max_rows, "progress_bar": progress_bar}
    fitted_to = [NetworkOutputs(*network_outputs(model, data, **options)) for data in (train, val)]
    if any(outputs.y is None for outputs in fitted_to):
        raise ValueError("'train' and 'val' should have labels, got inputs alone.")
    results = OODResults()
    started = time.perf_counter()
    inside = NetworkOutputs(*network_outputs(model, in_test, **options))
    results.forward_seconds = (time.perf_counter() - started) * 10_000 / len(inside.features)
    outputs = {name: NetworkOutputs(*network_outputs(model, data, **options)) for name, data in sets.items()}
    others = pytorch_ood_detectors(model.network_features.last_linear) if detectors is None else detectors
    for name, detector in {OURS: OfModel(model), **others}.items():
        _evaluate(name, detector, fitted_to, inside, outputs, set(near), resamples, results)
    results.fit_seconds[OURS] = model.fit_seconds
    return results


def _evaluate(
    name: str,
    detector: Detector,
    fitted_to: list[NetworkOutputs],
    inside: NetworkOutputs,
    outputs: Mapping[str, NetworkOutputs],
    near: set[str],
    resamples: int,
    results: OODResults,
) -> None:
    """Fit a detector, score all sets with it, and add what was measured to ``results``."""
    started = time.perf_counter()
    detector.fit(*fitted_to)
    fitted = time.perf_counter()
    in_scores = detector.score(inside).cpu()
    results.fit_seconds[name] = fitted - started
    results.score_seconds[name] = (time.perf_counter() - fitted) * 10_000 / len(in_scores)
    for data, found in outputs.items():
        values, intervals = compare_scores(in_scores, detector.score(found).cpu(), resamples)
        results.rows.append(OODRow(name, data, data in near, values, intervals))


def compare_scores(
    inside: Tensor, outside: Tensor, resamples: int = 200
) -> tuple[dict[str, float], dict[str, Interval]]:
    """AUROC, AUPR and FPR95 of scores (N,) and (M,), and their 95 % intervals, by name."""
    metric = OODScores()
    metric.update(inside, outside)
    found = metric.compute()
    values = {name: float(found[name]) for name in METRICS}
    intervals = bootstrap_intervals(inside, outside, resamples)
    half = Z * float(found["auroc_std_err"])
    intervals["auroc"] = (max(0.0, values["auroc"] - half), min(1.0, values["auroc"] + half))
    return values, intervals


def _checked_sets(near: Mapping[str, Data], far: Mapping[str, Data]) -> dict[str, Data]:
    both = near.keys() & far.keys()
    if both:
        raise ValueError(f"'near' and 'far' should have different names, got {', '.join(sorted(both))} in both.")
    if not near and not far:
        raise ValueError("'near' or 'far' should hold out-of-distribution sets by name, got none.")
    return {**near, **far}


def _cell(row: OODRow, metric: str) -> str:
    low, high = row.intervals[metric]
    return f"{row.values[metric]:.4f} [{low:.4f}, {high:.4f}]"
