"""Three enumerable systems of statistical physics: ``python recipes/statistical_physics.py``.

For one unit, three atoms on a line and a 4x4 Ising model, compares exact sums over the Boltzmann distribution with
estimates from sampling and annealing. Temperatures are in units of energy (Boltzmann's constant is 1).
"""

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import auto_cli
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import ColorType
from torch import Tensor

from ebm_lightning import BlockGibbs
from ebm_lightning.checks import check_integer, check_number
from ebm_lightning.energies import JointEnergy
from ebm_lightning.evaluation.report import results_folder
from ebm_lightning.partition import classification_rbm_ais
from ebm_lightning.partition.enumeration import binary_states
from ebm_lightning.rbm import RBMLogits, bernoulli
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Binary

BONDS = {"AA": 0.0, "AB": -1.0}
Row = dict[str, float | str]


# The systems.


def boltzmann(energies: Tensor, temperature: float) -> tuple[Tensor, float]:
    r"""Probabilities and log Z of a system with these energies.

    .. math:: p_s = e^{-E_s / T} / Z

    At temperature 0 all ground states have equal probability, at infinity all states. At temperature 0, energies are
    measured from the lowest, since log Z would be infinite otherwise. It is then the log of the number of ground
    states.

    Arguments:
        energies: Energy of every state, shape (S,).
        temperature: T, in units of energy; 0 and infinity are allowed.

    Raises:
        ValueError: ``temperature`` is negative.
    """
    check_number("temperature", temperature, at_least=0)
    energies = energies.double()
    if temperature == 0:
        lowest = (energies == energies.min()).double()
        return lowest / lowest.sum(), math.log(float(lowest.sum()))
    log_p = -energies / temperature
    return log_p.softmax(0), float(log_p.logsumexp(0))


def probability_up(low: float, field: float, temperature: float) -> Tensor:
    r"""P(g = 1) of one unit with the states ``low`` and 1 and the energy -g a, by the sum over both.

    .. math::
        g \in \{-1, +1\}: P(g = 1) = \mathrm{sigmoid}(2 a / T), \quad \mathbb{E}[g] = \tanh(a / T); \qquad
        g \in \{0, 1\}: P(g = 1) = \mathbb{E}[g] = \mathrm{sigmoid}(a / T)

    The two are easily confused: spins have the sigmoid of 2 a / T, bits that of a / T.

    Arguments:
        low: The other state, -1 or 0.
        field: a.
        temperature: T.
    """
    return boltzmann(-field * torch.tensor([low, 1.0]), temperature)[0][1]


def arrangements(atoms: str) -> list[str]:
    """The distinct orders of ``atoms`` on a line: for AAB these are AAB, ABA and BAA."""
    return sorted({"".join(order) for order in itertools.permutations(atoms)})


def line_energy(arrangement: str, bonds: Mapping[str, float]) -> float:
    """Sum of the energies of neighboring pairs on a line. Keys of ``bonds`` are in alphabetical order, such as AB."""
    return sum(bonds["".join(sorted(pair))] for pair in itertools.pairwise(arrangement))


@dataclass(frozen=True)
class Ising:
    r"""Ising model: spins on a square lattice with periodic boundaries.

    .. math:: E(s) = -J \sum_{\langle i j \rangle} s_i s_j - B \sum_i s_i, \qquad s_i \in \{-1, +1\}

    Color the lattice as a checkerboard. White squares interact only with black ones, so the spins of one color are
    independent given the other. This is an RBM whose visible units are the white squares and whose hidden units are
    the black ones.

    Arguments:
        side: L, even and at least 4.
        coupling: J, in units of energy.
        field: B.

    Raises:
        ValueError: ``side`` is odd or below 4.
    """

    side: int = 4
    coupling: float = 1.0
    field: float = 0.0

    def __post_init__(self) -> None:
        check_integer("side", self.side, at_least=4)
        if self.side % 2:
            raise ValueError(f"'side' should be even, got {self.side}. Use {self.side + 1}.")

    def energy(self, spins: Tensor) -> Tensor:
        """E(s) of spins of shape (N, L, L): shape (N,)."""
        bonds = (spins * (spins.roll(1, 1) + spins.roll(1, 2))).flatten(1).sum(1)
        return -self.coupling * bonds - self.field * spins.flatten(1).sum(1)

    def states(self) -> Tensor:
        """All states, shape (2^(L^2), L, L).

        Raises:
            ValueError: More than 20 sites.
        """
        return torch.cat(list(binary_states(self.side**2))).view(-1, self.side, self.side) * 2 - 1

    def rbm(self, temperature: float) -> tuple[JointEnergy, float]:
        """The RBM of the checkerboard, and the constant to add to its log Z for that of the spins."""
        white, black = self._colors()
        boards = torch.eye(self.side**2)[white].view(-1, self.side, self.side)  # one white square on each
        neighbors = torch.stack([boards.roll(step, axis) for step in (1, -1) for axis in (1, 2)]).sum(0).flatten(1)
        support = Binary((len(white),))
        net = RBMLogits(len(white), len(black), 1, support)
        bond, sites, bonds = self.coupling / temperature, self.side**2, 2 * self.side**2
        with torch.no_grad():
            net.class_weight.zero_()
            net.weight.copy_(4 * bond * neighbors[:, black].T)
            net.visible_bias.fill_(2 * self.field / temperature - 8 * bond)
            net.hidden_bias.fill_(2 * self.field / temperature - 8 * bond)
        return JointEnergy(net, support), bond * bonds - self.field / temperature * sites

    def spins(self, white: Tensor, black: Tensor) -> Tensor:
        """Spins, shape (N, L, L), of visible and hidden units of shape (N, L^2 / 2) each."""
        lattice = torch.empty(len(white), self.side**2, dtype=white.dtype, device=white.device)
        for squares, units in zip(self._colors(), (white, black), strict=True):
            lattice[:, squares] = 2 * units - 1
        return lattice.view(-1, self.side, self.side)

    def _colors(self) -> tuple[Tensor, Tensor]:
        """Flat indices of the white and of the black squares."""
        row = torch.arange(self.side)
        color = ((row[:, None] + row) % 2).flatten()
        return (color == 0).nonzero().flatten(), (color == 1).nonzero().flatten()


# The recipe.


def main(
    seed: int = 0,
    output: Path | None = None,
    num_chains: int = 10_000,
    sampler_steps: int = 100,
    temperatures: int = 300,
    coupling: float = 1.0,
    field: float = 1.0,
) -> list[Row]:
    """Print and plot exact values and estimates.

    Args:
        seed: Seed of all chains.
        output: Folder for results, new or empty; by default the next free runs/statistical_physics-N.
        num_chains: Number of independent chains for each estimate.
        sampler_steps: Number of moves of each chain.
        temperatures: Number of annealing steps.
        coupling: J of the Ising model.
        field: a of the single unit.
    """
    output = results_folder(output, "statistical_physics")
    rows = single_unit(field, num_chains, seed) + three_sites(num_chains, sampler_steps, seed)
    rows += ising(Ising(4, coupling), num_chains, sampler_steps, temperatures, seed)
    print(f"{'':52}{'exact':>12}{'estimate':>12}{'std. error':>12}")
    for row in rows:
        numbers = "".join(f"{row[key]:12.4f}" for key in ("exact", "estimate", "std_err"))
        print(f"{row['what']:<40}T = {row['T']:<8.3g}{numbers}")
    (output / "table.json").write_text(json.dumps(rows, indent=2))
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    unit, atoms, lattice = figure.subplots(1, 3)
    plot_unit(unit, rows, field)
    plot_sites(atoms, rows)
    plot_ising(lattice, rows, Ising(4, coupling))
    for axes in (unit, atoms, lattice):
        axes.legend(fontsize=8)
    figure.savefig(output / "statistical_physics.png", dpi=120)
    print(f"table.json and statistical_physics.png are in {output}")
    return rows


def single_unit(field: float, num_chains: int, seed: int) -> list[Row]:
    """A spin has mean tanh(a / T) and P(+1) = sigmoid(2 a / T); a bit has mean sigmoid(a / T)."""
    rows = []
    for t in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, math.inf):
        generator = make_generator(seed, "unit", str(t))
        spin = torch.where(torch.rand(num_chains, generator=generator) < probability_up(-1, field, t), 1.0, -1.0)
        bit = (torch.rand(num_chains, generator=generator) < probability_up(0, field, t)).float()
        ratio = torch.tensor(field * (math.inf if t == 0 else 1 / t) if field else 0.0)
        rows.append(_row("unit in {-1, +1}: E[g] = tanh(a/T)", t, ratio.tanh(), spin))
        rows.append(_row("  P(g = +1) = sigmoid(2a/T)", t, (2 * ratio).sigmoid(), (spin > 0).float()))
        rows.append(_row("unit in {0, 1}: E[g] = sigmoid(a/T)", t, ratio.sigmoid(), bit))
    return rows


def three_sites(num_chains: int, sampler_steps: int, seed: int) -> list[Row]:
    """Two A atoms and one B on a line. Moves swap two atoms, and the Metropolis rule accepts them."""
    orders = arrangements("AAB")
    energies = torch.tensor([line_energy(order, BONDS) for order in orders])
    rows = []
    for t in (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, math.inf):
        generator = make_generator(seed, "atoms", str(t))
        state = torch.randint(3, (num_chains,), generator=generator)
        for _ in range(sampler_steps):
            # Swap B with either A, or the two A's, which changes nothing. Each has probability 1/3.
            other = (state + torch.randint(3, (num_chains,), generator=generator)) % 3
            # At T = 0 the ratio is 0 or infinite, or NaN (rejected) for equal energies.
            accept = torch.rand(num_chains, generator=generator) < (-(energies[other] - energies[state]) / t).exp()
            state = torch.where(accept, other, state)
        exact, _ = boltzmann(energies, t)
        rows += [_row(f"atoms {o}: p", t, exact[i], (state == i).float()) for i, o in enumerate(orders)]
    return rows


def ising(model: Ising, num_chains: int, sampler_steps: int, temperatures: int, seed: int) -> list[Row]:
    """Sums over all 65 536 states, compared with block Gibbs on the checkerboard and with annealing."""
    states = model.states()
    energies, magnetization = model.energy(states), states.flatten(1).mean(1).abs()
    rows = []
    for t in (1.5, 2.0, 2.5, 3.0, 4.0, 6.0):
        p, log_z = boltzmann(energies, t)
        energy, constant = model.rbm(t)
        generator = make_generator(seed, "ising", str(t))
        spins = gibbs_spins(model, energy, num_chains, sampler_steps, generator)
        rows.append(_row("Ising 4x4: energy per site", t, p @ energies.double() / 16, model.energy(spins) / 16))
        rows.append(_row("  |magnetization|", t, p @ magnetization.double(), spins.flatten(1).mean(1).abs()))
        result = classification_rbm_ais(
            energy, data_mean=torch.full((8,), 0.5), temperatures=temperatures, num_chains=1000, generator=generator
        )
        estimate = {"estimate": result.log_z + constant, "std_err": result.std_err}
        rows.append({"what": "  log Z", "T": t, "exact": log_z, **estimate})
    return rows


def gibbs_spins(
    model: Ising, energy: JointEnergy, num_chains: int, sampler_steps: int, generator: torch.Generator
) -> Tensor:
    """Spins after block Gibbs sweeps from uniform noise, shape (num_chains, L, L)."""
    rbm, noise = energy.classifier, energy.support.sample(num_chains, generator=generator)
    assert isinstance(rbm, RBMLogits)
    white = BlockGibbs(sampler_steps)(energy, noise, generator=generator)
    with torch.no_grad():
        black = bernoulli(rbm.hidden_logits(white, torch.zeros(num_chains).long()), generator)
    return model.spins(white, black)


# The figure: exact curves, and estimates as points.


def plot_unit(axes: Axes, rows: list[Row], field: float) -> None:
    t = torch.linspace(0.05, 5, 200)
    for label, curve in (
        ("unit in {-1, +1}: E[g] = tanh(a/T)", (field / t).tanh()),
        ("  P(g = +1) = sigmoid(2a/T)", (2 * field / t).sigmoid()),
        ("unit in {0, 1}: E[g] = sigmoid(a/T)", (field / t).sigmoid()),
    ):
        (line,) = axes.plot(t.numpy(), curve.numpy(), label=label.strip())
        _plot_points(axes, rows, label, line.get_color(), 5)
    axes.set(xlabel="T", title=f"one unit, E = -g a, a = {field:g}", xlim=(0, 5.2))


def plot_sites(axes: Axes, rows: list[Row]) -> None:
    orders = arrangements("AAB")
    energies = torch.tensor([line_energy(order, BONDS) for order in orders])
    t = torch.logspace(-1.2, 1.2, 200)
    curves = torch.stack([boltzmann(energies, float(s))[0] for s in t])
    for i, (order, style) in enumerate(zip(orders, ("-", "-", "--"), strict=True)):
        (line,) = axes.plot(t.numpy(), curves[:, i].numpy(), style, label=order)
        _plot_points(axes, rows, f"atoms {order}: p", line.get_color(), 20)
    axes.set(xlabel="T", xscale="log", title="three sites, E(AB bond) = -1, E(AA bond) = 0", ylabel="p")


def plot_ising(axes: Axes, rows: list[Row], model: Ising) -> None:
    states = model.states()
    energies, magnetization = model.energy(states).double(), states.flatten(1).mean(1).abs().double()
    t = torch.linspace(1, 7, 60)
    p = torch.stack([boltzmann(energies, float(s))[0] for s in t])
    for label, curve in (
        ("Ising 4x4: energy per site", p @ energies / 16),
        ("  |magnetization|", p @ magnetization),
    ):
        (line,) = axes.plot(t.numpy(), curve.numpy(), label=label.split(": ")[-1].strip())
        _plot_points(axes, rows, label, line.get_color(), 7)
    axes.set(xlabel="T", title=f"4x4 Ising, J = {model.coupling:g}: all 65 536 states")


def _plot_points(axes: Axes, rows: list[Row], what: str, color: ColorType, last: float) -> None:
    chosen = [row for row in rows if row["what"] == what and 0 < float(row["T"]) <= last]
    x, y = ([float(row[key]) for row in chosen] for key in ("T", "estimate"))
    axes.plot(x, y, "o", color=color, ms=5)


def _row(what: str, temperature: float, exact: Tensor, draws: Tensor) -> Row:
    draws = draws.double()
    std_err = float(draws.std() / len(draws) ** 0.5)
    return {"what": what, "T": temperature, "exact": float(exact), "estimate": float(draws.mean()), "std_err": std_err}


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
