"""The sections of an evaluation report. Each explains its numbers and shows the models in adjacent columns."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ebm_lightning.evaluation.report.page import Better, Cell, Picture, Section, Table, compare

Results = Mapping[str, Mapping[str, float]]
"""What ``Trainer.test`` returned for each model, by the model's name."""
Row = tuple[str, str, Better] | tuple[str, str, Better, int]
"""Metric, label, which direction is better and, if not 4, the number of decimals."""

SCORES = {
    "log_density": "log p(x)",
    "max_probability": "maximum softmax probability, max p(y|x)",
    "negative_entropy": "negative entropy of p(y|x)",
    "approximate_mass": "approximate mass, -|grad log p(x)|",
}
CHANGES = {"linf": "L-inf attack, eps", "l2": "L2 attack, eps", "noise": "Gaussian noise, std"}


def evaluation_sections(
    results: Results, folders: Mapping[str, Path], bins: int, why: Mapping[str, str] | None = None
) -> list[Section]:
    """The sections of a report. Sections of which nothing was measured are left out.

    Arguments:
        results: Metrics of each model, in the order of the columns.
        folders: Folder with each model's pictures.
        bins: Number of bins of the calibration error.
        why: Why log Z of a model is not reliable, in one sentence, by the model's name.
    """
    view = _View(results, folders)
    made = [_classifier(view, bins), _ood(view), _likelihood(view, why or {}), _samples(view), _robustness(view)]
    return [section for section in [*made, _refinement(view)] if section.tables or section.pictures]


class _View:
    """The metrics and pictures of the models."""

    def __init__(self, results: Results, folders: Mapping[str, Path]) -> None:
        self.results, self.folders = results, folders
        self.models = list(results)

    def keys(self, prefix: str) -> list[str]:
        """The metrics of any model that begin with ``prefix``, without it, in order."""
        found = dict.fromkeys(key for metrics in self.results.values() for key in metrics if key.startswith(prefix))
        return [key.removeprefix(prefix) for key in found]

    def first(self, key: str) -> float | None:
        """A metric that is the same for all models."""
        return next(iter(self.results.values())).get(key)

    def count(self, key: str) -> int:
        """A count that is the same for all models; 0 if it was not measured."""
        return int(self.first(key) or 0)

    def cells(self, key: str, better: Better = "neither", digits: int = 4) -> list[Cell]:
        return compare([self.results[name].get(key) for name in self.models], better, digits)

    def table(self, *rows: Row) -> list[Table]:
        """One table with the rows that were measured; an empty list if none was."""
        known = [row for row in rows if any(row[0] in self.results[name] for name in self.models)]
        made = [(label, self.cells(key, *how)) for key, label, *how in known]
        return [Table(["", *self.models], made)] if made else []

    def pictures(self, pattern: str) -> list[Picture]:
        """The pictures that match, grouped by file name, captioned with the name of the model."""
        found = [(path.name, name, path) for name in self.models for path in self.folders[name].glob(pattern)]
        found.sort(key=lambda item: (item[0], self.models.index(item[1])))
        return [Picture(path, f"{name}: {path.stem.replace('-', ' ', 1)}") for _, name, path in found]


def _classifier(view: _View, bins: int) -> Section:
    return Section(
        "Classifier",
        "Accuracy: higher is better. Negative log-likelihood of the labels, in nats, and expected calibration error "
        f"over {bins} equal bins of confidence: lower is better, 0 is perfect. In the reliability diagrams, bars below "
        "the dashed line show overconfidence. All test images.",
        view.table(
            ("test/accuracy", "accuracy", "higher"),
            ("test/nll", "negative log-likelihood, nats", "lower"),
            ("test/ece", f"calibration error, {bins} bins", "lower"),
        ),
        view.pictures("test-reliability.png"),
    )


def _ood(view: _View) -> Section:
    found = [(parts[0], parts[1]) for key in view.keys("ood/") if len(parts := key.split("/")) == 3]
    sets = list(dict.fromkeys(name for name, _ in found))
    tables = {score: [name for name in sets if (name, score) in found] for score in SCORES}
    return Section(
        "Out-of-distribution detection",
        "Does a score rank test images above out-of-distribution images? AUROC: higher is better, 1 is perfect, 0.5 is "
        "chance; below 0.5, out-of-distribution images score higher than test images. FPR95 is the fraction of "
        "out-of-distribution images that are accepted by the threshold that accepts 95 % of the test images: lower is "
        "better, chance is 0.95. The histograms show log p(x) up to a constant: the less they overlap, the better. "
        f"{view.count('ood/images')} test images, and at most as many of each set.",
        [_ood_table(view, score, names) for score, names in tables.items() if names],
        [picture for name in sets for picture in view.pictures(f"ood-{name}.png")],
        columns=4,
    )


def _ood_table(view: _View, score: str, sets: Sequence[str]) -> Table:
    columns = [f"{metric} {name}" for metric in ("AUROC", "FPR95") for name in view.models]
    rows = []
    for name in sets:
        auroc = view.cells(f"ood/{name}/{score}/auroc", "higher", 3)
        rows.append((name, [*auroc, *view.cells(f"ood/{name}/{score}/fpr95", "lower", 3)]))
    return Table([SCORES[score], *columns], rows)


def _likelihood(view: _View, why: Mapping[str, str]) -> Section:
    reliable = all(metrics.get("ais/reliable") == 1 for metrics in view.results.values())
    up: Better = "higher" if reliable else "neither"
    down: Better = "lower" if reliable else "neither"
    return Section(
        "Likelihood",
        "log p(x) at temperature 1, with log Z by annealed importance sampling. Bits per dimension: lower is better. "
        "Its standard error is that of log Z. If 'reliable' is 0, a check of log Z failed: the likelihood may be far "
        "too high, and no model is marked as better. Models whose chains ran at a low temperature are not densities of "
        "images at temperature 1, and their likelihood is poor."
        + "".join(f" Log Z of '{name}' is not reliable. {reason}" for name, reason in why.items()),
        view.table(
            ("ais/bits_per_dim", "bits per dimension", down),
            ("ais/bits_per_dim_std_err", "standard error of the bits", "neither"),
            ("ais/log_likelihood", "log-likelihood, nats per image", up),
            ("ais/log_z", "log Z, nats", "neither"),
            ("ais/std_err", "standard error of log Z", "neither"),
            ("ais/ess", "relative effective sample size", "neither"),
            ("ais/reliable", "reliable (1) or not (0)", "neither", 0),
        ),
        view.pictures("ais-ess.png"),
    )


def _samples(view: _View) -> Section:
    networks = [key.removeprefix("fid_") for key in view.keys("samples/") if key.startswith("fid_")]
    networks = sorted(name for name in networks if not name.endswith(("_floor", "_start")))
    rows = [row for network in networks for row in _sample_rows(view, network)]
    return Section(
        "Samples",
        "Samples of new chains, without selection and without a replay buffer. FID and KID: distance from the test "
        "images in the features of the stated network, lower is better. Inception score: higher is better. None is "
        "comparable with published values, which use the Inception network and 50 000 samples. 'Initial points' is the "
        "value of the points where chains start: samples should be better. 'Real images' is the best value to expect: "
        f"{view.count('samples/held_out')} other test images against the same reference of "
        f"{view.count('samples/reference')} test images. {view.count('samples/generated')} samples.",
        [Table(["", *view.models, "initial points", "real images"], rows)] if rows else [],
        view.pictures("samples-*.png"),
    )


def _sample_rows(view: _View, network: str) -> list[tuple[str, list[Cell]]]:
    kinds: list[tuple[str, str, Better, str]] = [
        ("fid", "FID", "lower", "_floor"),
        ("kid", "KID", "lower", "_floor"),
        ("is", "Inception score", "higher", "_data"),
    ]
    rows = []
    for kind, label, better, real in kinds:
        key = f"samples/{kind}_{network}"
        if any(key in metrics for metrics in view.results.values()):
            bounds = compare([view.first(f"{key}_start"), view.first(key + real)])
            rows.append((f"{label}, network: {network}", [*view.cells(key, better), *bounds]))
    return rows


def _robustness(view: _View) -> Section:
    measured = [(name, *name.rsplit("_", 1)) for name in view.keys("robust/") if "_" in name]
    rows: list[Row] = [
        (f"robust/{name}", f"{CHANGES[kind]} {size}", "higher") for name, kind, size in measured if kind in CHANGES
    ]
    return Section(
        "Robustness",
        "Accuracy under projected gradient descent from a random start, and under Gaussian noise: higher is better. "
        "Sizes are in units of x (in a box [-1, 1], twice those for pixels in [0, 1]). The accuracy under attack is an "
        "upper bound on the robust accuracy: a stronger attack may lower it. "
        f"{view.count('robust/images')} test images.",
        view.table(("robust/clean", "unchanged images", "higher"), *rows),
        view.pictures("robust-curves.png"),
    )


def _refinement(view: _View) -> Section:
    prefix = "accuracy_"
    steps = sorted(int(key.removeprefix(prefix)) for key in view.keys("refine/") if key.startswith(prefix))
    rows: list[Row] = [(f"refine/accuracy_{k}", f"accuracy after {k} steps", "higher") for k in steps]
    rows += [(f"refine/energy_change_{k}", f"mean change of E(x) after {k} steps, nats", "neither") for k in steps]
    return Section(
        "Refinement",
        "The sampler moves the test images before they are classified. Accuracy: higher is better. If the energy falls "
        f"far, chains leave the data. {view.count('refine/images')} test images.",
        view.table(*rows),
    )
