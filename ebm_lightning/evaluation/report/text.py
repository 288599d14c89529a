"""Metrics as a plain-text table."""

from collections.abc import Mapping


def comparison_table(metrics: Mapping[str, float], baseline: str = "baseline") -> str:
    """A line for each metric of the model, with the baseline's value next to it if there is a baseline.

    Arguments:
        metrics: What :func:`ebm_lightning.evaluate` returned.
        baseline: Prefix of the baseline's keys.
    """
    prefix = f"{baseline}/"
    own = {key: value for key, value in metrics.items() if not key.startswith(prefix)}
    names = ["model", baseline] if len(own) < len(metrics) else ["model"]
    lines = [f"{'':44}" + "".join(f"{name:>14}" for name in names)]
    for key, value in own.items():
        values = [value, metrics.get(prefix + key)][: len(names)]
        lines.append(f"{key:44}" + "".join(f"{'-':>14}" if v is None else f"{v:14.4f}" for v in values))
    return "\n".join(lines)
