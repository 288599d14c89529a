"""What an evaluation measured, in sections: each says how to read its numbers, and holds the models side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ebm_lightning.report.page import Better, Cell, Picture, Section, Table, compare

Results = Mapping[str, Mapping[str, float]]
"""Of each model, by its name: what ``Trainer.test`` returned."""

SCORES = {
    "log_density": "log p(x)",
    "max_probability": "max p(y|x)",
    "negative_entropy": "minus the entropy of p(y|x)",
    "approximate_mass": "approximate mass, -|grad log p(x)|",
}


Row = tuple[str, str, Better] | tuple[str, str, Better, int]
"""A key, what it is called, which way is better and, if not 4, the digits after the point."""


def evaluation_sections(results: Results, folders: Mapping[str, Path], bins: int) -> list[Section]:
    """The sections of a report; what was not measured is left out.

    Arguments:
        results: Of each model, in the order of the columns.
        folders: Where each model's pictures are.
        bins: Of the calibration error.
    """
    view = _View(results, folders)
    made = [_classifier(view, bins), _foreign(view), _likelihood(view), _samples(view), _robustness(view)]
    return [section for section in [*made, _refinement(view)] if section.tables or section.pictures]


class _View:
    """The models' numbers and pictures, by name."""

    def __init__(self, results: Results, folders: Mapping[str, Path]) -> None:
        self.results, self.folders = results, folders
        self.models = list(results)

    def number(self, key: str) -> int:
        """A count that is the same for all models."""
        return int(next(iter(self.results.values())).get(key, 0))

    def cells(self, key: str, better: Better = "neither", digits: int = 4) -> list[Cell]:
        return compare([self.results[name].get(key) for name in self.models], better, digits)

    def table(self, *rows: Row) -> list[Table]:
        """One table; none if no model has any of its rows."""
        known = [row for row in rows if any(row[0] in self.results[name] for name in self.models)]
        made = [(label, self.cells(key, *how)) for key, label, *how in known]
        return [Table(["", *self.models], made)] if made else []

    def pictures(self, pattern: str) -> list[Picture]:
        """The pictures of that name, those of one kind together, each with its model's name."""
        found = [(path.name, name, path) for name in self.models for path in self.folders[name].glob(pattern)]
        found.sort(key=lambda item: (item[0], self.models.index(item[1])))
        return [Picture(path, f"{name}: {path.stem.replace('-', ' ', 1)}") for _, name, path in found]


def _classifier(view: _View, bins: int) -> Section:
    return Section(
        "The classifier",
        "Accuracy: higher is better. Negative log-likelihood of the labels in nats and expected calibration error over "
        f"{bins} equal bins of confidence: lower is better, 0 is perfect. In the diagrams, bars below the dashed line "
        "are confidence that was not earned. All test images.",
        view.table(
            ("test/accuracy", "accuracy", "higher"),
            ("test/nll", "negative log-likelihood, nats", "lower"),
            ("test/ece", f"calibration error, {bins} bins", "lower"),
        ),
        view.pictures("test-reliability.png"),
    )


def _foreign(view: _View) -> Section:
    found = dict.fromkeys(
        (key.split("/")[1], key.split("/")[2]) for r in view.results.values() for key in r if key.count("/") == 3
    )
    tables = []
    for score in [s for s in SCORES if any(s == found_score for _, found_score in found)]:
        columns = [f"{what} {name}" for what in ("AUROC", "FPR95") for name in view.models]
        rows = [
            (
                name,
                [
                    *view.cells(f"ood/{name}/{score}/auroc", "higher", 3),
                    *view.cells(f"ood/{name}/{score}/fpr95", "lower", 3),
                ],
            )
            for name, measured in found
            if measured == score
        ]
        tables.append(Table([SCORES[score], *columns], rows))
    return Section(
        "Foreign images",
        "Does a score rank test images above images of something else? AUROC: higher is better, 1 is perfect, 0.5 is "
        "chance and below that foreign images look more familiar than real ones. FPR95 is the share of foreign images "
        "let in by the threshold that keeps 95 % of the test images: lower is better, chance is 0.95. Histograms show "
        f"log p(x) up to its constant: apart is good. {view.number('ood/images')} test images and at most as many of "
        "each set.",
        tables,
        [picture for name in dict.fromkeys(name for name, _ in found) for picture in view.pictures(f"ood-{name}.png")],
        columns=4,
    )


def _likelihood(view: _View) -> Section:
    trusted = all(r.get("ais/reliable") == 1 for r in view.results.values())
    up: Better = "higher" if trusted else "neither"
    down: Better = "lower" if trusted else "neither"
    return Section(
        "Likelihood",
        "log p(x) at temperature 1, with log Z by annealed importance sampling. Bits per dimension: lower is better; "
        "its standard error is the one that log Z leaves in it. Where 'reliable' is 0 the chains did not agree, the "
        "figures may be far too good, and no model is marked as better. Models whose chains ran at a low temperature "
        "are no densities of images at temperature 1, and this will show.",
        view.table(
            ("ais/bits_per_dim", "bits per dimension", down),
            ("ais/bits_per_dim_std_err", "its standard error", "neither"),
            ("ais/log_likelihood", "log-likelihood, nats per image", up),
            ("ais/log_z", "log Z, nats", "neither"),
            ("ais/std_err", "its standard error", "neither"),
            ("ais/ess", "effective share of the chains", "neither"),
            ("ais/reliable", "reliable: 1, or not: 0", "neither", 0),
        ),
        view.pictures("ais-ess.png"),
    )


def _samples(view: _View) -> Section:
    labels = {
        key.removeprefix("samples/fid_") for r in view.results.values() for key in r if key.startswith("samples/fid_")
    }
    rows: list[tuple[str, Sequence[Cell]]] = []
    for label in sorted(name for name in labels if not name.endswith(("_floor", "_start"))):
        for what, better, best in (("fid", "lower", "_floor"), ("kid", "lower", "_floor"), ("is", "higher", "_data")):
            key = f"samples/{what}_{label}"
            if any(key in r for r in view.results.values()):
                first = next(iter(view.results.values()))
                bounds = compare([first.get(key + "_start"), first.get(key + best)])
                name = {"fid": "FID", "kid": "KID", "is": "Inception score"}[what]
                direction: Better = "higher" if better == "higher" else "lower"
                rows.append((f"{name}, network: {label}", [*view.cells(key, direction), *bounds]))
    return Section(
        "Samples",
        "Fresh chains, none chosen, none from a replay buffer. FID and KID: distance from the test images in the "
        "features of the stated network, lower is better; Inception score: higher. They are NOT the published ones, "
        "which use the Inception network and 50 000 samples. 'Starts' are where chains began, which they have to "
        f"better. The last column is what real images reach: {view.number('samples/held_out')} other test images "
        f"against the same reference of {view.number('samples/reference')}; {view.number('samples/generated')} "
        "samples.",
        [Table(["", *view.models, "starts", "real images"], rows)] if rows else [],
        view.pictures("samples-*.png"),
    )


def _robustness(view: _View) -> Section:
    keys = dict.fromkeys(key for r in view.results.values() for key in r if key.startswith("robust/"))
    words = {"linf": "L-inf attack, eps", "l2": "L2 attack, eps", "noise": "Gaussian noise, std"}
    rows: list[tuple[str, str, Better]] = [("robust/clean", "unchanged images", "higher")]
    for key in keys:
        kind, _, size = key.removeprefix("robust/").partition("_")
        if kind in words:
            rows.append((key, f"{words[kind]} {size}", "higher"))
    return Section(
        "Robustness",
        "Accuracy that is left after projected gradient descent from a random start, and under Gaussian noise: higher "
        "is better. Sizes are in units of x (in a box [-1, 1] twice those of pixels in [0, 1]). The attack bounds the "
        f"robust accuracy from above: a stronger one may leave less. {view.number('robust/images')} test images.",
        view.table(*rows) if keys else [],
        view.pictures("robust-curves.png"),
    )


def _refinement(view: _View) -> Section:
    found = {key for r in view.results.values() for key in r if key.startswith("refine/accuracy_")}
    steps = sorted(int(key.rpartition("_")[2]) for key in found)
    rows: list[tuple[str, str, Better]] = [
        (f"refine/accuracy_{k}", f"accuracy after {k} steps", "higher") for k in steps
    ]
    rows += [(f"refine/energy_change_{k}", f"mean change of E(x) after {k} steps, nats", "neither") for k in steps]
    return Section(
        "Refined inputs",
        "Test images take steps of the sampler before they are classified. Accuracy: higher is better. An energy that "
        f"falls far says that chains leave the images. {view.number('refine/images')} test images.",
        view.table(*rows),
    )
