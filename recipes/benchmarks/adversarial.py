"""Energies that make estimates of log Z lie: ``python recipes/benchmarks/adversarial.py``.

All targets have a known log Z. A run is "reliable and wrong" if the library calls it reliable and its distance from the
truth is more than max(4 standard errors, .05 nat). That should never happen. If Z is infinite, no answer is right.
``--random 60 --first_seed 1000`` runs random targets of seven kinds instead, one per seed, and with ``--targets '[tails
in many dimensions]'`` those of an eighth.
"""

import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import adversarial_targets as make
import torch
from common import check_targets, print_table, write_json
from jsonargparse import auto_cli
from known_energies import Funnel, Student, Valley, two_phases
from random_targets import KINDS, MANY_DIMENSIONS, kind_of, random_target
from targets import Budget, Target, compute, contradict, laplace, normal
from tqdm import tqdm

from ebm_lightning import LogZ
from ebm_lightning.partition import Mixture, Normal, StudentT
from ebm_lightning.supports import Box, Density, Euclidean, Support

HEADER = (
    *("target", "truth", "runs", "mean error", "RMSE", "stated error", "coverage", "reliable", "reliable and wrong"),
    *("most frequent reason", "gradients", "seconds"),
)
TOLERANCE = 0.05  # nats
ACCURACY = 1e-3  # nats; of the truths
EASY = 0.1  # nats; where all errors are smaller, most runs should be reliable
WHY_LENGTH = 90  # characters

TARGETS: dict[str, Callable[[], Target]] = {
    "spikes-64": make.spikes_64,
    "spikes-64 both ways": make.spikes_64_both_ways,
    "rbm-60x10, own biases": lambda: make.own_biases(two_phases(60, 10, 0.6, 5.0)),
    "rbm-60x10, data": make.rbm_from_data,
    "rbm-200x20, own biases": make.rbm_20,
    "narrow 1e-2": lambda: make.narrow(1e-2),
    "narrow 1e-3": lambda: make.narrow(1e-3),
    "narrow 1e-4": lambda: make.narrow(1e-4),
    "Gaussian support on box": make.gaussian_on_box,
    "proposal on R^2": lambda: make.square_on_box(normal(2)),
    "proposal on R^3": lambda: make.square_on_box(normal(3)),
    "proposal on small box": lambda: make.square_on_box(Normal(torch.zeros(2), torch.ones(2), Box(-0.5, 0.5, (2,)))),
    "proposal in 3-D": lambda: make.square_on_box(Normal(torch.zeros(3), torch.ones(3), Box(-1, 1, (3,)))),
    "Many-well-32": lambda: make.many_well(16),
    "Many-well-128": lambda: make.many_well(64),
    "GMM-40 from N(0, 5)": make.gmm_40,
    "Student-1": lambda: make.on_space(Student(10, 1), 1.0),
    "Student-2": lambda: make.on_space(Student(10, 2), 1.0),
    "Student-1 both ways": make.student_both_ways,
    "Cauchy-2": lambda: Target(lambda x: x.square().log1p().sum(1), Euclidean((2,)), normal(2), 2 * math.log(math.pi)),
    "linear-64, 60 temperatures": lambda: make.linear(64, 1.0, temperatures=60),
    "Gauss-16, rotated": lambda: make.rotated(torch.logspace(-1, 0.5, 16), temperatures=60),
    "Gauss-64, rotated": lambda: make.rotated(torch.logspace(-1, 1, 64), temperatures=900),
    "Rosenbrock-5": lambda: make.on_space(Valley(5, 0.5, 20.0), 2.0),
    "Rosenbrock-2": lambda: make.on_space(Valley(2, 0.05, 5.0), 2.0),
    "untrained-64": lambda: make.untrained(64),
    "untrained-784": lambda: make.untrained(784),
    "equal-784": lambda: Target(make.half_square, Euclidean((784,)), normal(784), 784 * make.LOG_ROOT_TWO_PI),
    "Funnel-10": lambda: make.on_space(Funnel(10), 3.0),
    "abs(x)^.2": lambda: Target(lambda x: x[:, 0].abs() ** 0.2, Euclidean((1,)), normal(1), math.log(240)),
    "abs(x)^.2, wide": lambda: Target(lambda x: x[:, 0].abs() ** 0.2, Euclidean((1,)), normal(1, 300.0), math.log(240)),
    "Student-2 in a box of 4-D": lambda: make.peak_in_box(4, 2, 20.0),
    "Student-1 in a box of 10-D": lambda: make.peak_in_box(10, 1, 50.0),
    "Student-3 in a box of 10-D": lambda: make.peak_in_box(10, 3, 50.0),
    "infinite: tail": lambda: make.infinite(make.tail),
    "infinite: tail in reverse": make.reverse_tail,
    "infinite: ReLU": make.logits_without_walls,
    "infinite: pole in box": lambda: Target(make.pole, make.SQUARE, None, math.inf),
    "infinite: pole, quadrature": lambda: Target(make.pole, make.SQUARE, None, math.inf, estimate=compute),
    "rare class": make.rare_class,
    "linear-200, smallest class": lambda: make.linear(200, 1.0, label=0),
    "linear-200, largest class": lambda: make.linear(200, 1.0, label=9),
    "one label": make.one_label,
    "contradiction": lambda: Target(make.half_square, Euclidean((2,)), normal(2), math.nan, estimate=contradict),
    "training mode": make.training_closure,
    "offset 1e5": lambda: make.offset(1e5, 10),
    "offset 1e7": lambda: make.offset(1e7, 10),
    "offset 1e9": lambda: make.offset(1e9, 1),
    "half a box": make.walled,
    "quartic-2, Laplace": lambda: make.quartic(2, estimate=laplace),
    "easy: linear-64": lambda: make.linear(64, 1.0),
    "easy: quartic-10": lambda: make.quartic(10),
    "easy: Gauss-16": lambda: make.rotated(torch.logspace(-0.5, 0.5, 16)),
}


@dataclass(frozen=True)
class Outcome:
    """One run of a target, in nats. The errors are NaN if it was refused with a ValueError; ``why`` is the message."""

    target: str
    seed: int
    truth: float
    log_z: float
    std_err: float
    covered: bool
    reliable: bool
    wrong: bool
    why: str
    gradients: int
    seconds: float

    @property
    def error(self) -> float:
        return self.log_z - self.truth


def main(
    targets: tuple[str, ...] = (),
    seeds: int = 20,
    first_seed: int = 0,
    random: int = 0,
    num_chains: int | None = None,
    temperatures: int | None = None,
    again: bool = False,
    output: Path = Path("adversarial.json"),
) -> None:
    """Run targets and compare with their known log Z.

    Args:
        targets: Names of targets, or of kinds of random targets; all by default.
        seeds: Number of runs per named target.
        first_seed: Seed of the first run, and of the first random target.
        random: If positive, run this many random targets instead of the named ones.
        num_chains, temperatures: In place of those of the targets.
        again: Where an estimate is refused for heavy tails, run once more from the proposal that is recommended.
        output: JSON file of all runs, written after every target.
    """
    names = tuple(KINDS) if random else tuple(TARGETS)
    check_targets(targets, (*names, MANY_DIMENSIONS) if random else names)
    given = {"num_chains": num_chains, "temperatures": temperatures}
    budget = {name: value for name, value in given.items() if value is not None}
    numbers = range(first_seed, first_seed + (random or seeds))
    table: dict[str, list[Outcome]] = {}
    with tqdm(total=random or seeds * len(targets or names)) as bar:
        for name in targets or names:
            bar.set_description(name)
            if random:
                own = [seed for seed in numbers if name in (MANY_DIMENSIONS, kind_of(seed))]
                runs = ((random_target(seed, name), seed) for seed in own)
            else:
                target = TARGETS[name]()
                runs = ((target, seed) for seed in numbers)
            table[name] = [advance(bar, outcome(name, target, seed, budget, again)) for target, seed in runs]
            write_json(output, [asdict(run) for row in table.values() for run in row])
    report(table)


def outcome(name: str, target: Target, seed: int, budget: Budget, again: bool = False) -> Outcome:
    """Run a target once and judge the answer, or that of a second run from the recommended proposal."""
    start = time.perf_counter()
    try:
        result = target.run(seed, budget)
        if again and "StudentT.fit(estimate" in result.why:
            result = replace(target, proposal=recommended(target.support, result)).run(seed, budget)
    except ValueError as error:
        result = LogZ(math.nan, math.nan, why=str(error))
    seconds, truth = time.perf_counter() - start, target.truth
    low, high = result.interval()
    covered = low - ACCURACY <= truth <= high + ACCURACY
    wrong = result.reliable and is_wrong(result, truth)
    return Outcome(
        *(name, seed, truth, result.log_z, result.std_err, covered, result.reliable, wrong, result.why),
        *(result.gradient_evaluations, seconds),
    )


def recommended(support: Support, result: LogZ) -> Density:
    """The proposal that ``why`` recommends for a second run."""
    if not isinstance(support, Box):
        return StudentT.fit(result.samples, result.log_weights)
    return Mixture([StudentT.fit(result.samples, result.log_weights, box=support), support])


def is_wrong(result: LogZ, truth: float) -> bool:
    """Whether log Z is further from the truth than max(4 standard errors, .05 nat). True where it is NaN."""
    distance = abs(result.log_z - truth)
    return not (distance <= TOLERANCE or distance <= 4 * result.std_err)


def report(table: dict[str, list[Outcome]]) -> None:
    """Print the table and the totals."""
    table = {name: runs for name, runs in table.items() if runs}
    print_table(HEADER, [row(name, runs) for name, runs in table.items()])
    runs = [run for row in table.values() for run in row]
    print(f"\nReliable and wrong: {sum(run.wrong for run in runs)} of {len(runs)} runs.")
    print(f"Right to {EASY} nat in all runs, but reliable in less than 9 of 10: {', '.join(refused(table)) or 'none'}.")


def row(name: str, runs: Sequence[Outcome]) -> tuple[str, ...]:
    """One line of the table."""
    truths, reliable = {run.truth for run in runs}, [run for run in runs if run.reliable]
    errors = [run.error for run in runs if math.isfinite(run.error)]
    covered = f"{sum(run.covered for run in reliable)} of {len(reliable)}" if reliable else "-"
    return (
        *(name, f"{runs[0].truth:.3f}" if len(truths) == 1 else "varies", str(len(runs))),
        *(number(statistics.mean, errors), number(root_mean_square, errors)),
        *(number(statistics.mean, [run.std_err for run in runs if math.isfinite(run.std_err)]), covered),
        *(str(len(reliable)), str(sum(run.wrong for run in runs)), most_frequent(run.why for run in runs)),
        *(f"{max(run.gradients for run in runs):.2e}", f"{statistics.mean(run.seconds for run in runs):.1f}"),
    )


def refused(table: dict[str, list[Outcome]]) -> list[str]:
    """Targets on which all runs are right, but too few are reliable."""
    return [
        name
        for name, runs in table.items()
        if all(abs(run.error) < EASY for run in runs) and sum(run.reliable for run in runs) < 0.9 * len(runs)
    ]


def most_frequent(reasons: Iterable[str]) -> str:
    """The most frequent reason, shortened, and its count. Reasons that differ only in numbers count as one."""
    reasons = [reason for reason in reasons if reason]
    if not reasons:
        return "-"
    kinds = [re.sub(r"\d[\d.e+-]*", "#", reason) for reason in reasons]
    kind, count = Counter(kinds).most_common(1)[0]
    reason = " ".join(reasons[kinds.index(kind)].replace("|", "/").split())
    return f"{count} x: {reason[:WHY_LENGTH]}{'...' if len(reason) > WHY_LENGTH else ''}"


def number(summary: Callable[[Sequence[float]], float], values: Sequence[float]) -> str:
    return f"{summary(values):.4f}" if values else "-"


def root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(statistics.mean(value * value for value in values))


def advance(bar: tqdm, done: Outcome) -> Outcome:
    bar.update()
    return done


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
