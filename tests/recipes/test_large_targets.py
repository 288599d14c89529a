"""Large targets: the table, and the energy of the Cox process against torch.distributions.

Mutants killed: a prior or a likelihood without its constant, a covariance between the wrong cells, points in
the wrong cell, and a table that hides that blackjax did not run.
"""

import importlib.util
import math

import pytest
import torch

from tests.helpers import recipe

large_targets = recipe("benchmarks/large_targets.py")


def test_the_cox_process_is_that_of_its_definition(seed):
    side, points = 3, torch.tensor([[0.1, 0.5], [0.2, 0.4], [1.0, 1.0]])
    energy = large_targets.CoxProcess.of_points(points, side)
    counts = torch.zeros(side, side)
    counts[0, 1], counts[2, 2] = 2, 1
    assert torch.equal(energy.counts, counts.flatten())
    cells = [(i, j) for i in range(side) for j in range(side)]
    distances = torch.tensor([[math.dist(a, b) / side for b in cells] for a in cells], dtype=torch.float64)
    log_intensity = torch.randn(5, side * side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    covariance = 1.91 * (-distances * 33).exp()
    mean = torch.full((side * side,), math.log(126) - 1.91 / 2, dtype=torch.float64)
    prior = torch.distributions.MultivariateNormal(mean, covariance)
    rate = log_intensity.exp() / side**2
    poisson = torch.distributions.Poisson(rate).log_prob(counts.flatten()).sum(1)
    without_constants = poisson + (energy.counts * math.log(side**2) + (energy.counts + 1).lgamma()).sum()
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (log_intensity - mean).T, upper=False).T
    log_jacobian = torch.linalg.cholesky(covariance).diagonal().log().sum()
    expected = -(prior.log_prob(log_intensity) + without_constants + log_jacobian)
    torch.testing.assert_close(energy(z.float()).double(), expected, rtol=1e-4, atol=1e-3)


def test_the_table_has_a_row_for_each_target(capsys):
    large_targets.main(("GMM-40 from N(0, 25)", "Many-well-32"), seeds=1, scale=0.01, blackjax=False)
    rows = capsys.readouterr().out.splitlines()[3:]
    assert [row.split(" | ")[:3] for row in rows] == [
        ["| GMM-40 from N(0, 25)", "ais", "0.000"],
        ["| Many-well-32", "ais", "164.696"],
    ]


@pytest.mark.skipif(importlib.util.find_spec("blackjax") is not None, reason="blackjax is installed")
def test_a_missing_blackjax_is_reported(capsys):
    large_targets.main((), seeds=1)
    assert "blackjax is left out: it is not installed." in capsys.readouterr().out
