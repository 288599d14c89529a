"""The rows of tables of metrics, in groups, for the page and for the terminal."""

from typing import NamedTuple

from ebm_lightning.evaluation.report.ranking import Better, Comparison

SCORES = {
    "log_density": "log p(x)",
    "max_probability": "maximum softmax probability, max p(y|x)",
    "negative_entropy": "negative entropy of p(y|x)",
    "approximate_mass": "approximate mass, -|grad log p(x)|",
}
CHANGES = {"linf": "L-inf attack, eps", "l2": "L2 attack, eps", "noise": "Gaussian noise, std"}


class Row(NamedTuple):
    """A metric in a table.

    Attributes:
        key: Its name.
        label: What it is called in the table.
        better: Which direction is better.
        digits: Largest number of decimals.
    """

    key: str
    label: str
    better: Better = "neither"
    digits: int = 4


CLASSIFIER = (
    Row("test/accuracy", "accuracy", "higher"),
    Row("test/nll", "negative log-likelihood of labels, nats", "lower"),
    Row("test/ece", "calibration error", "lower"),
)
LIKELIHOOD = (
    Row("ais/bits_per_dim", "bits per dimension", "lower"),
    Row("ais/log_likelihood", "log-likelihood, nats per image", "higher", 2),
    Row("ais/log_z", "log Z, nats", digits=3),
    Row("ais/std_err", "standard error of log Z, nats"),
    Row("ais/ess", "relative effective sample size", digits=3),
    Row("ais/reliable", "log Z reliable (1) or not (0)", digits=0),
)
CHAINS = (
    Row("agreement/energy_gap", "energy of new minus annealed chains, nats (0)", digits=3),
    Row("agreement/class_distance", "distance of class shares from Z_y / Z (0)", digits=3),
    Row("agreement/two_sample_accuracy", "new told from annealed chains (0.5)", digits=3),
)


def measured(comparison: Comparison, rows: tuple[Row, ...] | list[Row]) -> list[Row]:
    """The rows whose metric some model has."""
    return [row for row in rows if any(row.key in metrics for metrics in comparison.results.values())]


def keys(comparison: Comparison, prefix: str) -> list[str]:
    """The metrics of any model that begin with ``prefix``, in order and each once."""
    metrics = comparison.results.values()
    return list(dict.fromkeys(key for each in metrics for key in each if key.startswith(prefix)))


def ood_rows(comparison: Comparison, score: str, metric: str, better: Better) -> list[Row]:
    """One row for each out-of-distribution set that was scored."""
    suffix = f"/{score}/{metric}"
    return [
        Row(key, key.removeprefix("ood/").removesuffix(suffix), better, 3)
        for key in keys(comparison, "ood/")
        if key.endswith(suffix)
    ]


def auroc_rows(comparison: Comparison) -> list[Row]:
    """The AUROC of each set by log p(x), or by the first score where that was not measured."""
    rows = ood_rows(comparison, "log_density", "auroc", "higher")
    short = [key for key in keys(comparison, "ood/") if key.count("/") == 2 and key.endswith("/auroc")]
    return rows or [Row(key, key.split("/")[1], "higher", 3) for key in short]


def sample_rows(comparison: Comparison) -> list[tuple[Row, str, str]]:
    """FID, KID and Inception score by each network, with the keys of initial points and of real images."""
    networks = [key.removeprefix("samples/kid_") for key in keys(comparison, "samples/kid_")]
    networks = [name for name in networks if not name.endswith(("_floor", "_start", "_std_err"))]
    rows = []
    for kind, label, better, real in KINDS:
        for network in networks:
            key = f"samples/{kind}_{network}"
            rows.append((Row(key, f"{label}, network: {network}", better), f"{key}_start", key + real))
    return [row for row in rows if measured(comparison, [row[0]])]


KINDS: tuple[tuple[str, str, Better, str], ...] = (
    ("fid", "FID", "lower", "_floor"),
    ("kid", "KID", "lower", "_floor"),
    ("is", "Inception score", "neither", "_data"),  # higher for confident noise too, so it ranks nothing
)


def robustness_rows(comparison: Comparison) -> list[Row]:
    """Accuracy on unchanged images, and under each attack and noise."""
    names = [key.removeprefix("robust/") for key in keys(comparison, "robust/") if "_" in key]
    parts = [(name, *name.rsplit("_", 1)) for name in names]
    changed = [
        Row(f"robust/{name}", f"{CHANGES[kind]} {size}", "higher") for name, kind, size in parts if kind in CHANGES
    ]
    return measured(comparison, [Row("robust/clean", "unchanged images", "higher"), *changed])


def refinement_rows(comparison: Comparison) -> list[Row]:
    """Accuracy and change of energy after each number of steps."""
    prefix = "refine/accuracy_"
    steps = sorted(int(key.removeprefix(prefix)) for key in keys(comparison, prefix) if "std_err" not in key)
    rows = [Row(f"refine/accuracy_{k}", f"accuracy after {k} steps", "higher") for k in steps]
    rows += [Row(f"refine/energy_change_{k}", f"change of E(x) after {k} steps, nats", digits=2) for k in steps]
    return measured(comparison, rows)
