"""What an evaluation found, in words: one verdict on each topic, with its error bars."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from ebm_lightning.evaluation.error_bars import Z, wilson
from ebm_lightning.evaluation.report.ranking import Better, Comparison

Word = Literal["better", "worse", "mixed", "the same within error", "not to be trusted", "not compared"]


class Verdict(NamedTuple):
    """One line of the summary.

    Attributes:
        topic: What was judged, such as "Accuracy".
        word: The model compared with the baseline.
        text: The numbers with their 95 % errors, in sentences.
    """

    topic: str
    word: Word
    text: str


def verdicts(comparison: Comparison, why: Mapping[str, str] | None = None) -> list[Verdict]:
    """The verdicts on what was measured: of the first model, next to the second if there is one.

    Arguments:
        comparison: The metrics.
        why: Why log Z of a model is not reliable, by the model's name.
    """
    makers: list[Callable[[], Verdict | None]] = [
        lambda: _accuracy(comparison),
        lambda: _calibration(comparison),
        lambda: _ood(comparison),
        lambda: _likelihood(comparison, why or {}),
        lambda: _samples(comparison),
    ]
    return [verdict for make in makers if (verdict := make()) is not None]


def _accuracy(c: Comparison) -> Verdict | None:
    key = "test/accuracy"
    if key not in c.results[c.models[0]]:
        return None

    def shown(model: str) -> str:
        metrics = c.results[model]
        if not metrics.get("test/images"):
            return f"{model} {100 * metrics[key]:.2f} %"
        low, high = wilson(metrics[key], metrics["test/images"])
        return f"{model} {100 * metrics[key]:.2f} % ({100 * low:.2f} to {100 * high:.2f})"

    n = c.results[c.models[0]].get("test/images")
    images = f"{n:.0f} test images, with 95 % intervals: " if n else ""
    text = f"{images}{', '.join(map(shown, _with(c, key)))}.{_difference(c, key, 100, ' points')}"
    return Verdict("Accuracy", _word(c, key, "higher"), text)


def _calibration(c: Comparison) -> Verdict | None:
    key = "test/ece"
    if key not in c.results[c.models[0]]:
        return None
    text = f"Expected calibration error: {_values(c, key)}.{_difference(c, key)} It is biased upwards for few images."
    return Verdict("Calibration", _word(c, key, "lower"), text)


def _ood(c: Comparison) -> Verdict | None:
    first, *others = c.models
    sets = {key: key.split("/")[1] for key in c.results[first] if key.startswith("ood/") and key.endswith("/auroc")}
    long = {key: name for key, name in sets.items() if key.endswith("/log_density/auroc")}
    sets = long or {key: name for key, name in sets.items() if key.count("/") == 2}
    if not sets:
        return None
    found: dict[str, list[str]] = {}
    for key, name in sets.items():
        found.setdefault(_ood_word(c, key, others), []).append(f"{name} ({_against(c, key)})")
    parts = [f"{label[0].upper()}{label[1:]} on {', '.join(names)}." for label, names in found.items()]
    return Verdict("Out-of-distribution detection", _overall(set(found)), "AUROC by log p(x). " + " ".join(parts))


NO_BETTER, BELOW, ABOVE = "no better than chance", "below chance", "above chance"


def _ood_word(c: Comparison, key: str, others: list[str]) -> str:
    first = c.models[0]
    models = [first, *[model for model in others[:1] if key in c.results[model]]]
    if not any(c.above_chance(model, key) for model in models):
        value, error = c.results[first][key], Z * (c.std_err(first, key) or 0.0)
        return BELOW if value + error < 0.5 else NO_BETTER
    return ABOVE if len(models) == 1 else _word(c, key, "higher")


def _overall(words: set[str]) -> Word:
    """One word for all sets: those on which no model is above chance decide only if there are no others."""
    known = words - {BELOW, NO_BETTER}
    if not known:
        return "not to be trusted"
    if known == {ABOVE}:
        return "not compared"
    if {"better", "worse"} <= known:
        return "mixed"
    return "better" if "better" in known else "worse" if "worse" in known else "the same within error"


def _likelihood(c: Comparison, why: Mapping[str, str]) -> Verdict | None:
    first, key = c.models[0], "ais/log_likelihood"
    if key not in c.results[first]:
        return None
    bits, unit = "ais/bits_per_dim", "bits per dimension"
    shown = bits if bits in c.results[first] else key
    unit = unit if shown == bits else "nats per image"
    unreliable = [model for model in _with(c, key) if not c.trusted(model, key)]
    reasons = "".join(
        f" log Z of {model} is not reliable: {why.get(model) or 'report.html says why.'}" for model in unreliable
    )
    text = f"log p(x) at temperature 1, in {unit}: {_values(c, shown)}.{reasons}"
    if first in unreliable:
        return Verdict("Likelihood", "not to be trusted", text)
    if unreliable or len(_with(c, key)) < 2:
        return Verdict("Likelihood", "not compared", text)
    return Verdict("Likelihood", _word(c, key, "higher"), text + _difference(c, key, unit=" nats per image"))


def _samples(c: Comparison) -> Verdict | None:
    first = c.models[0]
    keys = [key for key in c.results[first] if key.startswith("samples/fid_") and f"{key}_std_err" in c.results[first]]
    if not keys:
        return None
    key = keys[0]
    start, real = c.results[first].get(f"{key}_start"), c.results[first].get(f"{key}_floor")
    text = f"FID of new chains: {_values(c, key, 3)}"
    text += f"; where chains start {start:.3g}" if start is not None else ""
    text += f"; real images {real:.3g}." if real is not None else "."
    if not c.trusted(first, key):
        reason = f" Samples of {first} are not better than the points where its chains start."
        return Verdict("Samples", "not to be trusted", text + reason)
    bad = [model for model in _with(c, key)[1:] if not c.trusted(model, key)]
    text += "".join(f" Samples of {model} are not better than the points where its chains start." for model in bad)
    return Verdict("Samples", _word(c, key, "lower"), text)


def _with(c: Comparison, key: str) -> list[str]:
    """The first two models, if they have the metric."""
    return [model for model in c.models[:2] if key in c.results[model]]


def _word(c: Comparison, key: str, better: Better) -> Word:
    models = _with(c, key)
    if len(models) < 2 or c.difference(models[0], models[1], key) is None:
        return "not compared"
    if c.beats(models[0], models[1], key, better):
        return "better"
    return "worse" if c.beats(models[1], models[0], key, better) else "the same within error"


def _values(c: Comparison, key: str, digits: int = 4) -> str:
    return ", ".join(f"{model} {_with_error(c, model, key, digits)}" for model in _with(c, key))


def _against(c: Comparison, key: str) -> str:
    return " against ".join(_with_error(c, model, key, 3) for model in _with(c, key))


def _with_error(c: Comparison, model: str, key: str, digits: int) -> str:
    value, error = c.results[model][key], c.std_err(model, key)
    return f"{value:.{digits}f}" if error is None else f"{value:.{digits}f} ± {Z * error:.{digits}f}"


def _difference(c: Comparison, key: str, scale: float = 1.0, unit: str = "") -> str:
    models = _with(c, key)
    found = c.difference(models[0], models[1], key) if len(models) == 2 else None
    if found is None:
        return ""
    digits = 2 if scale > 1 or unit else 4
    return f" Difference {scale * found[0]:+.{digits}f} ± {scale * Z * found[1]:.{digits}f}{unit}."
