"""Differences between two models that were measured on the same images, with their standard errors."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from ebm_lightning.callbacks.ood_histogram import Scores
from ebm_lightning.evaluation.error_bars import (
    accuracy_difference,
    auroc_std_err,
    calibration_error,
    ece_resamples,
    mean_std_err,
    placements,
)


class Measured(NamedTuple):
    """What was found out about one model.

    Attributes:
        metrics: What ``Trainer.test`` returned.
        values: ``correct``, ``confidence``, ``nll`` and ``energy`` of each test image, shape (N,) each.
        scores: Scores of the test images and of each out-of-distribution set, by set and score.
        examples: Some images of each out-of-distribution set, shape (n, *shape).
        why: Why log Z is not reliable, in one sentence; empty if it is, or was not estimated.
    """

    metrics: dict[str, float]
    values: Mapping[str, Tensor]
    scores: Mapping[tuple[str, str], Scores]
    examples: Mapping[str, Tensor]
    why: str


def compared(first: Measured, second: Measured, bins: int) -> dict[str, float]:
    """``compared/<metric>``, the first model's value minus the second's, and ``compared/<metric>_std_err``.

    Both models saw the same images, so the errors are those of paired differences: what is hard for both cancels.

    Arguments:
        first: The model.
        second: What it is compared with.
        bins: Bins of the calibration error.
    """
    pairs = {
        **_classification(first.values, second.values, bins),
        **{
            f"ood/{name}/{score}/auroc": _auroc(scores, second.scores[name, score])
            for (name, score), scores in first.scores.items()
        },
        **_likelihood(first, second),
    }
    return {
        f"compared/{key}": value
        for name, pair in pairs.items()
        for key, value in zip((name, f"{name}_std_err"), pair, strict=True)
    }


def _classification(a: Mapping[str, Tensor], b: Mapping[str, Tensor], bins: int) -> dict[str, tuple[float, float]]:
    nll = a["nll"] - b["nll"]
    ece = [ece_resamples(v["confidence"], v["correct"], bins) for v in (a, b)]
    means = [calibration_error(v["confidence"], v["correct"], bins) for v in (a, b)]
    return {
        "test/accuracy": accuracy_difference(a["correct"], b["correct"]),
        "test/nll": (float(nll.mean()), mean_std_err(nll)),
        "test/ece": (float(means[0] - means[1]), float((ece[0] - ece[1]).std())),
    }


def _auroc(a: Scores, b: Scores) -> tuple[float, float]:
    of_a, of_b = placements(*a), placements(*b)
    inside, outside = (x - y for x, y in zip(of_a, of_b, strict=True))
    return float(inside.mean()), auroc_std_err(inside, outside)


def _likelihood(a: Measured, b: Measured) -> dict[str, tuple[float, float]]:
    key = "ais/log_likelihood"
    if key not in a.metrics or key not in b.metrics:
        return {}
    images = mean_std_err(a.values["energy"] - b.values["energy"])
    return {
        key: (a.metrics[key] - b.metrics[key], math.hypot(images, a.metrics["ais/std_err"], b.metrics["ais/std_err"]))
    }
