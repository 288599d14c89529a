"""Large and hard targets: ``OMP_NUM_THREADS=1 python recipes/benchmarks/large_targets.py``.

Prints a Markdown table with the errors, gradient evaluations and CPU seconds of ``ais``. If blackjax is installed, its
adaptive tempered SMC runs on the same targets with the same number of gradients, see ``blackjax_smc.py``. ``scale``
multiplies the temperatures of all targets, to see how errors fall with the budget.

The log-Gaussian Cox process needs the positions of the 126 Finnish pine saplings (``finpines`` of the R package
spatstat.data, GPL) as lines ``x,y`` in the unit square: (x + 5) / 10 and (y + 8) / 10.
"""

import functools
import importlib
import importlib.util
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import adversarial_targets as make
import torch
from common import check_targets, print_table, timed
from jsonargparse import auto_cli
from known_energies import Funnel, RotatedGaussian
from targets import Target, normal
from torch import Tensor
from tqdm import tqdm

from ebm_lightning.energies import JointEnergy, MixtureLogits
from ebm_lightning.partition import Normal
from ebm_lightning.supports import Euclidean

HEADER = ("target", "method", "log Z", "mean error", "RMSE", "stated error", "reliable", "gradients", "CPU seconds")
PARTICLES, LEAPFROGS = 1000, 5  # of blackjax
PUBLISHED_COX = 501.8  # one of two public values. The other one is 512.6.


class Large(NamedTuple):
    """A target, its energy for blackjax, and its budget.

    Attributes:
        target: Starts from a normal proposal.
        potential: Makes the energy of one point from the module ``blackjax_smc``; None to leave blackjax out.
        temperatures, num_chains: As for ``ais``.
    """

    target: Target
    potential: Callable[[Any], Any] | None
    temperatures: int
    num_chains: int = 1000


class Run(NamedTuple):
    """One estimate of log Z. Fields that a method does not state are NaN."""

    log_z: float
    std_err: float
    reliable: float
    gradients: int
    seconds: float


def many_well(dimensions: int, temperatures: int, std: float = 1.0) -> Large:
    return Large(make.many_well(dimensions // 2, std), lambda package: package.many_well, temperatures)


def gmm_40() -> Large:
    target = replace(make.gmm_40(), proposal=normal(2, 25.0))
    assert isinstance(target.energy, JointEnergy)
    logits = target.energy.classifier
    assert isinstance(logits, MixtureLogits)
    return Large(target, lambda package: package.mixture(logits.means.numpy(), float(logits.std)), 900)


def gaussian_64() -> Large:
    """Rotated, with a covariance of condition number 1000."""
    target = make.rotated(torch.logspace(-0.75, 0.75, 64))
    energy = target.energy
    assert isinstance(energy, RotatedGaussian)
    return Large(target, lambda package: package.gaussian(energy.axes.numpy(), energy.std.numpy()), 900)


def funnel_10() -> Large:
    return Large(make.on_space(Funnel(10), 1.0), lambda package: package.funnel(10, 3.0), 900)


@dataclass(frozen=True)
class CoxProcess:
    """The posterior of a log-Gaussian Cox process on a grid, in coordinates where its prior is N(0, 1).

    The prior and the likelihood are those of Moller, Syversveen & Waagepetersen 1998, without the constant
    -sum(log counts!), as in Heng et al. 2020. Z does not depend on the coordinates, since the prior is normalized.

    Attributes:
        counts: Points in each cell, shape (D,).
        factor: Transposed Cholesky factor of the prior covariance, shape (D, D).
        variance: Prior variance of the log intensity.
    """

    counts: Tensor
    factor: Tensor
    variance: float = 1.91

    @classmethod
    def of_points(cls, points: Tensor, side: int = 40) -> "CoxProcess":
        """From points in the unit square, shape (N, 2), with ``side`` cells along each side."""
        cells = (points * side).long().clamp(0, side - 1)
        counts = torch.bincount(cells[:, 0] * side + cells[:, 1], minlength=side * side)
        grid = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()
        covariance = cls.variance * (-torch.cdist(grid, grid) * 33 / side).exp()
        return cls(counts.float(), torch.linalg.cholesky(covariance).T.float().contiguous())

    def __call__(self, z: Tensor) -> Tensor:
        log_intensity = z @ self.factor + math.log(126) - self.variance / 2
        log_likelihood = log_intensity @ self.counts - log_intensity.exp().mean(1)
        return 0.5 * z.square().sum(1) + 0.5 * z.shape[1] * math.log(2 * math.pi) - log_likelihood


def cox_process(points: Tensor) -> Large:
    target = Target(CoxProcess.of_points(points), Euclidean((1600,)), normal(1600), PUBLISHED_COX)
    return Large(target, None, 500, 400)


TARGETS: dict[str, Callable[[], Large]] = {
    "Gauss-64, condition 1000": gaussian_64,
    "Many-well-32": lambda: many_well(32, 900),
    "GMM-40 from N(0, 25)": gmm_40,
    "Funnel-10": funnel_10,
    "Many-well-128": lambda: many_well(128, 4000),
    "Many-well-512": lambda: many_well(512, 10_000, 0.2),
}


def main(
    targets: tuple[str, ...] = ("Gauss-64, condition 1000", "Many-well-32", "GMM-40 from N(0, 25)", "Funnel-10"),
    seeds: int = 6,
    scale: float = 1.0,
    blackjax: bool = True,
    pines: Path | None = None,
) -> None:
    """Compare estimates with known values of log Z.

    Args:
        targets: Names of targets. Besides the defaults there are "Many-well-128", and "Many-well-512" from N(0, .2).
        seeds: Runs of each method and target.
        scale: Multiplies the temperatures of all targets.
        blackjax: Run blackjax too.
        pines: File of the pine saplings. The Cox process is then added to the targets.
    """
    if blackjax and importlib.util.find_spec("blackjax") is None:
        print("blackjax is left out: it is not installed.")
        blackjax = False
    check_targets(targets, TARGETS)
    made = {name: TARGETS[name]() for name in targets}
    if pines is not None:
        rows = [[float(value) for value in line.split(",")] for line in pines.read_text().split()]
        made["Cox process, 1600"] = cox_process(torch.tensor(rows, dtype=torch.float64))
    rows_of_table = []
    for name, large in made.items():
        runs = [annealed(large, seed, scale) for seed in tqdm(range(seeds), name, leave=False)]
        rows_of_table.append(row(name, "ais", large, runs))
        if blackjax and large.potential is not None:
            budget = int(statistics.mean(run.gradients for run in runs))
            rows_of_table.append(row(name, "blackjax", large, tempered(large, budget, seeds)))
    print_table(HEADER, rows_of_table)


def annealed(large: Large, seed: int, scale: float) -> Run:
    size = {"temperatures": round(scale * large.temperatures), "num_chains": large.num_chains}
    duration, result = timed(lambda: large.target.run(seed, size))
    return Run(result.log_z, result.std_err, float(result.reliable), result.gradient_evaluations, duration.cpu)


def tempered(large: Large, budget: int, seeds: int) -> list[Run]:
    """Runs of blackjax. A first run with one move shows how many temperatures it takes, which is not counted."""
    package = importlib.import_module("blackjax_smc")
    proposal = large.target.proposal
    assert large.potential is not None
    assert isinstance(proposal, Normal)
    energy, std = large.potential(package), proposal.std.numpy()
    temperatures = package.tempered_smc(energy, std, PARTICLES, 1, LEAPFROGS, seeds).temperatures
    moves = max(1, round((budget / (PARTICLES * temperatures) - 1) / LEAPFROGS))
    run = functools.partial(package.tempered_smc, energy, std, PARTICLES, moves, LEAPFROGS)
    timings = [timed(functools.partial(run, seed)) for seed in tqdm(range(seeds), "blackjax", leave=False)]
    return [Run(found.log_z, math.nan, math.nan, found.gradients, spent.cpu) for spent, found in timings]


def row(name: str, method: str, large: Large, runs: list[Run]) -> tuple[str, ...]:
    errors = [run.log_z - large.target.truth for run in runs]
    rmse = math.sqrt(statistics.mean(error * error for error in errors))
    mean = Run(*(statistics.mean(values) for values in zip(*runs, strict=True)))
    stated = "-" if math.isnan(mean.std_err) else f"{mean.std_err:.3f}"
    reliable = "-" if math.isnan(mean.reliable) else f"{sum(run.reliable for run in runs):.0f} of {len(runs)}"
    cells = (f"{large.target.truth:.3f}", f"{statistics.mean(errors):+.3f}", f"{rmse:.3f}", stated, reliable)
    return (name, method, *cells, f"{mean.gradients:.2e}", f"{mean.seconds:.0f}")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
