"""The sections of an evaluation report. Each explains its numbers and shows the models in adjacent columns."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ebm_lightning.evaluation.error_bars import Z
from ebm_lightning.evaluation.report.page import Cell, Picture, Section, Table, shown
from ebm_lightning.evaluation.report.pictures import model_pictures
from ebm_lightning.evaluation.report.ranking import Comparison
from ebm_lightning.evaluation.report.rows import (
    CLASSIFIER,
    LIKELIHOOD,
    SCORES,
    Row,
    measured,
    ood_rows,
    refinement_rows,
    robustness_rows,
    sample_rows,
)


def evaluation_sections(
    comparison: Comparison,
    folders: Mapping[str, Path],
    bins: int,
    ood_pictures: Sequence[Picture] = (),
    why: Mapping[str, str] | None = None,
) -> list[Section]:
    """The sections of a report. Sections of which nothing was measured are left out.

    Arguments:
        comparison: Metrics of each model, in the order of the columns.
        folders: Folder with each model's pictures.
        bins: Number of bins of the calibration error.
        ood_pictures: The pictures of the out-of-distribution sets.
        why: Why log Z of a model is not reliable, in one sentence, by the model's name.
    """
    made = [
        _classifier(comparison, folders, bins),
        _ood(comparison, ood_pictures),
        _energies(comparison, folders),
        _likelihood(comparison, folders, why or {}),
        _samples(comparison, folders),
        _robustness(comparison, folders),
        _refinement(comparison),
    ]
    return [section for section in made if section.tables or section.pictures]


def cells(comparison: Comparison, row: Row) -> list[Cell]:
    """The values of a metric with their 95 % errors, and which is better than all others by more than the error."""
    best = comparison.winner(row.key, row.better)
    return [Cell(_value(comparison, model, row), model == best) for model in comparison.models]


def _value(comparison: Comparison, model: str, row: Row) -> str:
    value, error = comparison.results[model].get(row.key), comparison.std_err(model, row.key)
    if value is None:
        return "-"
    return shown(value, row.digits) + ("" if error is None else f" ± {shown(Z * error, row.digits)}")


def _table(comparison: Comparison, caption: str, rows: Sequence[Row]) -> list[Table]:
    """One table, or none if there are no rows."""
    made = [(row.label, cells(comparison, row)) for row in rows]
    return [Table(caption, comparison.models, made)] if made else []


def _count(comparison: Comparison, key: str) -> int:
    """A count that is the same for all models; 0 if it was not measured."""
    return int(comparison.results[comparison.models[0]].get(key, 0))


def _classifier(c: Comparison, folders: Mapping[str, Path], bins: int) -> Section:
    return Section(
        "Classifier",
        "Accuracy: higher is better. Negative log-likelihood of the labels, in nats, and expected calibration error "
        f"over {bins} equal bins of confidence: lower is better, 0 is perfect. In the reliability diagrams, bars below "
        "the dashed line show overconfidence. All test images.",
        _table(c, "Accuracy and calibration", measured(c, CLASSIFIER)),
        model_pictures(c, folders, "test-reliability.png"),
    )


def _ood(c: Comparison, pictures: Sequence[Picture]) -> Section:
    tables = []
    for score, label in SCORES.items():
        tables += _table(c, f"AUROC by {label}", ood_rows(c, score, "auroc", "higher"))
        tables += _table(c, f"FPR95 by {label}", ood_rows(c, score, "fpr95", "lower"))
    return Section(
        "Out-of-distribution detection",
        "Does a score rank test images above out-of-distribution images? AUROC: higher is better, 1 is perfect, 0.5 is "
        "chance; below 0.5, out-of-distribution images score higher than test images, and no model is marked. FPR95 is "
        "the fraction of out-of-distribution images that are accepted by the threshold that accepts 95 % of the test "
        "images: lower is better, chance is 0.95. The histograms show log p(x) up to a constant: the less they "
        f"overlap, the better. {_count(c, 'ood/images')} test images, and at most as many of each set.",
        tables,
        pictures,
    )


def _energies(c: Comparison, folders: Mapping[str, Path]) -> Section:
    return Section(
        "Energies",
        "The test images that each model finds most likely and least likely. Lower energy means more likely. Plain "
        "images with few details often have the lowest energy, and unusual or mislabeled ones the highest.",
        (),
        model_pictures(c, folders, "test-extremes.png"),
    )


def _likelihood(c: Comparison, folders: Mapping[str, Path], why: Mapping[str, str]) -> Section:
    return Section(
        "Likelihood",
        "log p(x) at temperature 1, with log Z by annealed importance sampling. Bits per dimension: lower is better. "
        "Errors contain that of log Z and that of the number of images. If 'reliable' is 0, a check of log Z failed: "
        "the likelihood may be far too high, and no model is marked as better. Models whose chains ran at a low "
        "temperature are not densities of images at temperature 1, and their likelihood is poor."
        + "".join(f" Log Z of {name} is not reliable. {reason}" for name, reason in why.items()),
        _table(c, "Likelihood", measured(c, LIKELIHOOD)),
        model_pictures(c, folders, "ais-path.png"),
    )


def _samples(c: Comparison, folders: Mapping[str, Path]) -> Section:
    first = c.results[c.models[0]]
    rows = [
        (row.label, [*cells(c, row), *(_plain(first.get(key), row.digits) for key in (start, real))])
        for row, start, real in sample_rows(c)
    ]
    return Section(
        "Samples",
        "Samples of new chains, without selection and without a replay buffer. FID and KID: distance from the test "
        "images in the features of the stated network, lower is better. None is comparable with published values, "
        "which use the Inception network and 50 000 samples. 'Initial points' is the value of the points where chains "
        "start: samples should be better, or they are not marked. 'Real images' is the best value to expect: "
        f"{_count(c, 'samples/held_out')} other test images against the same reference of "
        f"{_count(c, 'samples/reference')} test images. The Inception score is high for confident noise too, so no "
        f"model is marked. {_count(c, 'samples/generated')} samples.",
        [Table("Quality of samples", [*c.models, "initial points", "real images"], rows)] if rows else [],
        model_pictures(c, folders, "samples-unconditional.png", "samples-conditional.png"),
    )


def _plain(value: float | None, digits: int) -> Cell:
    return Cell("-" if value is None else shown(value, digits))


def _robustness(c: Comparison, folders: Mapping[str, Path]) -> Section:
    return Section(
        "Robustness",
        "Accuracy under projected gradient descent from a random start, and under Gaussian noise: higher is better. "
        "Sizes are in units of x (in a box [-1, 1], twice those for pixels in [0, 1]). The accuracy under attack is an "
        "upper bound on the robust accuracy: a stronger attack may lower it. "
        f"{_count(c, 'robust/images')} test images.",
        _table(c, "Accuracy under attack and noise", robustness_rows(c)),
        model_pictures(c, folders, "robust-curves.png"),
    )


def _refinement(c: Comparison) -> Section:
    return Section(
        "Refinement",
        "The sampler moves the test images before they are classified. Accuracy: higher is better. If the energy falls "
        f"far, chains leave the data. {_count(c, 'refine/images')} test images.",
        _table(c, "Test images moved by the sampler", refinement_rows(c)),
    )
