"""Which model is better by a metric, if the difference is larger than its error and the value can be trusted."""

import math
from collections.abc import Mapping
from typing import Literal

from ebm_lightning.evaluation.error_bars import Z, fraction_std_err

Better = Literal["higher", "lower", "neither"]
Results = Mapping[str, Mapping[str, float]]
"""The metrics of each model, by the model's name."""

COUNTS = {"test/accuracy": "test/images", "robust/": "robust/images", "refine/accuracy_": "refine/images"}
"""Metrics that are fractions, and the number of images that they are fractions of."""
COMPARED_AS: dict[str, tuple[str, Better]] = {"ais/bits_per_dim": ("ais/log_likelihood", "higher")}
"""Metrics that rank models as another metric does, which has an error."""


class Comparison:
    """The metrics of several models, and how they rank.

    Arguments:
        results: The metrics of each model, by the model's name.
        differences: ``compared/<metric>`` and ``compared/<metric>_std_err`` of the first two models, from the same
            images. Where they are missing, errors are taken as independent, and differences have to be larger.
    """

    def __init__(self, results: Results, differences: Mapping[str, float] | None = None) -> None:
        self.results = results
        self.differences = differences or {}
        self.models = list(results)

    def std_err(self, model: str, key: str) -> float | None:
        """Standard error of a metric of a model; None if it is not known."""
        metrics = self.results[model]
        if key not in metrics:
            return None
        if f"{key}_std_err" in metrics:
            return metrics[f"{key}_std_err"]
        counted = next((images for prefix, images in COUNTS.items() if key.startswith(prefix)), "")
        return fraction_std_err(metrics[key], metrics[counted]) if metrics.get(counted) else None

    def difference(self, first: str, second: str, key: str) -> tuple[float, float] | None:
        """``first`` minus ``second``, and the standard error; None if one of them is not known."""
        paired = self.differences.get(f"compared/{key}")
        if paired is not None and {first, second} == set(self.models[:2]):
            sign = 1.0 if first == self.models[0] else -1.0
            return sign * paired, self.differences[f"compared/{key}_std_err"]
        one, other = self.std_err(first, key), self.std_err(second, key)
        if one is None or other is None:
            return None
        return self.results[first][key] - self.results[second][key], math.hypot(one, other)

    def beats(self, first: str, second: str, key: str, better: Better) -> bool:
        """Whether ``first`` is better than ``second`` by more than the 95 % error of the difference."""
        key, better = COMPARED_AS.get(key, (key, better))
        found = self.difference(first, second, key)
        if found is None or better == "neither" or not all(map(math.isfinite, found)):
            return False
        difference, error = found
        return (difference if better == "higher" else -difference) > Z * error

    def winner(self, key: str, better: Better) -> str | None:
        """The model that beats all others that have the metric, and whose value is trusted; None if there is none."""
        models = [model for model in self.models if key in self.results[model]]
        if len(models) < 2:
            return None
        for model in models:
            others = [other for other in models if other != model]
            if self.trusted(model, key) and all(self.beats(model, other, key, better) for other in others):
                return model if key not in LOG_Z or all(self.trusted(other, key) for other in others) else None
        return None

    def trusted(self, model: str, key: str) -> bool:
        """Whether a value means something: better than chance, than where chains start, and with a reliable log Z."""
        metrics = self.results[model]
        if key.endswith("/auroc"):
            return self.above_chance(model, key)
        if key.endswith("/fpr95"):
            return metrics[key] + Z * (self.std_err(model, key) or 0.0) < 0.95
        if key.startswith(("samples/fid_", "samples/kid_")):
            start = metrics.get(f"{key}_start", math.inf)
            return metrics[key] + Z * (self.std_err(model, key) or 0.0) < start
        return metrics.get("ais/reliable") == 1 if key in LOG_Z else True

    def above_chance(self, model: str, key: str) -> bool:
        """Whether an AUROC is above 0.5 by more than its 95 % error."""
        return self.results[model][key] - Z * (self.std_err(model, key) or 0.0) > 0.5


LOG_Z = ("ais/bits_per_dim", "ais/log_likelihood")
