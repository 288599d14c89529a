"""The table of the trained models and of what they reach."""

from collections.abc import Mapping

from ebm_lightning.models.index import FOLDER, shipped_models

Metrics = Mapping[str, tuple[float, float]]
COLUMNS = ("name", "what it is", "MB", "accuracy", "calibration error", "log p(x) of test data", "lowest AUROC")


def models_table() -> str:
    """The trained models with their test metrics and standard errors, as a Markdown table."""
    rows = [list(COLUMNS)]
    for name, model in shipped_models().items():
        size = (FOLDER / model.file).stat().st_size / 1e6
        measured = [_value(model.metrics["test/accuracy"]), _value(model.metrics["test/ece"])]
        rows.append(
            [f"`{name}`", model.what, f"{size:.2f}", *measured, _likelihood(model.metrics), _auroc(model.metrics)]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _value(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.3f} ± {pair[1]:.3f}"


def _likelihood(metrics: Metrics) -> str:
    """In bits per dimension for images, and only if log Z is reliable."""
    if not metrics["ais/reliable"][0]:
        return "log Z unreliable"
    if "ais/bits_per_dim" in metrics:
        return f"{_value(metrics['ais/bits_per_dim'])} bits/dim"
    return f"{_value(metrics['ais/log_likelihood'])} nats"


def _auroc(metrics: Metrics) -> str:
    """Of log p(x), on the out-of-distribution set where it is lowest."""
    sets = {key.split("/")[1]: pair for key, pair in metrics.items() if key.startswith("ood/")}
    lowest = min(sets, key=lambda name: sets[name][0])
    return f"{_value(sets[lowest])}, {lowest}"
