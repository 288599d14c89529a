"""Energy models small enough to know everything about: ``python recipes/statistical_physics.py``.

One unit, three atoms on a line, and a 4x4 Ising model: what the Boltzmann distribution says exactly, beside what
sampling and annealing find. Temperatures and energies share one unit (Boltzmann's constant is 1).
"""

import json
import math
from pathlib import Path

import torch
from jsonargparse import auto_cli
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ebm_lightning import BlockGibbs
from ebm_lightning.boltzmann import RBMLogits, bernoulli
from ebm_lightning.partition import Ising, boltzmann, classification_rbm_ais, unit_mean
from ebm_lightning.partition.physics import arrangements, line_energy
from ebm_lightning.report import results_folder
from ebm_lightning.streams import make_generator

BONDS = {"AA": 0.0, "AB": -1.0}
Row = dict[str, float | str]


def main(
    seed: int = 0,
    output: Path | None = None,
    chains: int = 10_000,
    sweeps: int = 100,
    temperatures: int = 300,
    coupling: float = 1.0,
    field: float = 1.0,
) -> list[Row]:
    """Print truth beside estimate, and draw both.

    Args:
        seed: Of all chains.
        output: Folder for results, new or empty; by default the next free runs/statistical_physics-N.
        chains: Independent chains for each estimate.
        sweeps: Moves of each chain.
        temperatures: Steps of annealing.
        coupling: J of the Ising model.
        field: a of the single unit.
    """
    output = results_folder(output, "statistical_physics")
    rows = single_unit(field, chains, seed) + three_sites(chains, sweeps, seed)
    rows += ising(Ising(4, coupling), chains, sweeps, temperatures, seed)
    print(f"{'':52}{'truth':>12}{'estimate':>12}{'std. error':>12}")
    for row in rows:
        print(f"{row['what']:<40}T = {row['T']:<8.3g}" + "".join(f"{row[k]:12.4f}" for k in ("truth", "found", "err")))
    (output / "table.json").write_text(json.dumps(rows, indent=2))
    picture(rows, field, coupling).savefig(output / "statistical_physics.png", dpi=120)
    print(f"table.json and statistical_physics.png are in {output}")
    return rows


def single_unit(field: float, chains: int, seed: int) -> list[Row]:
    """Spins are tanh(a / T) on average; bits sigmoid(a / T); sigmoid(2 a / T) is P(+1) of the spin."""
    rows = []
    for t in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, math.inf):
        generator = make_generator(seed, "unit", str(t))
        spin = torch.where(torch.rand(chains, generator=generator) < boltzmann(_two(-1, field), t)[0][1], 1.0, -1.0)
        bit = (torch.rand(chains, generator=generator) < boltzmann(_two(0, field), t)[0][1]).float()
        beta = math.inf if t == 0 else 1 / t
        closed = torch.tensor(field * beta if field else 0.0)
        rows.append(_row("unit in {-1, +1}: E[g] = tanh(a/T)", t, closed.tanh(), spin))
        rows.append(_row("  P(g = +1) = sigmoid(2a/T)", t, (2 * closed).sigmoid(), (spin > 0).float()))
        rows.append(_row("unit in {0, 1}: E[g] = sigmoid(a/T)", t, closed.sigmoid(), bit))
        assert abs(unit_mean(field, t) - float(closed.tanh())) < 1e-6
    return rows


def three_sites(chains: int, moves: int, seed: int) -> list[Row]:
    """Two A atoms and a B on a line; chains swap two atoms at a time and accept by Metropolis's rule."""
    orders = arrangements("AAB")
    energies = torch.tensor([line_energy(order, BONDS) for order in orders])
    rows = []
    for t in (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, math.inf):
        generator = make_generator(seed, "atoms", str(t))
        state = torch.randint(3, (chains,), generator=generator)
        for _ in range(moves):
            # Swapping B with either A, or the two A with each other, which changes nothing: each one in three.
            other = (state + torch.randint(3, (chains,), generator=generator)) % 3
            # At T = 0 the ratio is 0, infinite, or undefined and no move at all: descent.
            accept = torch.rand(chains, generator=generator) < (-(energies[other] - energies[state]) / t).exp()
            state = torch.where(accept, other, state)
        truth, _ = boltzmann(energies, t)
        rows += [_row(f"atoms {o}: p", t, truth[i], (state == i).float()) for i, o in enumerate(orders)]
    return rows


def ising(model: Ising, chains: int, sweeps: int, temperatures: int, seed: int) -> list[Row]:
    """All 65 536 states against block Gibbs on the checkerboard, and log Z against annealing."""
    states = model.states()
    energies, magnetisation = model.energy(states), states.flatten(1).mean(1).abs()
    rows = []
    for t in (1.5, 2.0, 2.5, 3.0, 4.0, 6.0):
        p, log_z = boltzmann(energies, t)
        energy, constant = model.rbm(t)
        generator = make_generator(seed, "ising", str(t))
        white = BlockGibbs(sweeps)(energy, energy.support.sample(chains, generator=generator), generator=generator)
        rbm, label = energy.classifier, torch.zeros(chains).long()
        assert isinstance(rbm, RBMLogits)
        with torch.no_grad():
            black = bernoulli(rbm.hidden_logits(white, label), generator)
        spins = model.spins(white, black)
        rows.append(_row("Ising 4x4: energy per site", t, p @ energies.double() / 16, model.energy(spins) / 16))
        rows.append(_row("  |magnetisation|", t, p @ magnetisation.double(), spins.flatten(1).mean(1).abs()))
        found = classification_rbm_ais(
            energy, data_mean=torch.full((8,), 0.5), temperatures=temperatures, chains=1000, generator=generator
        )
        rows.append({"what": "  log Z", "T": t, "truth": log_z, "found": found.log_z + constant, "err": found.std_err})
    return rows


def picture(rows: list[Row], field: float, coupling: float) -> Figure:
    """Exact curves, and the estimates as points on them."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    unit, atoms, lattice = figure.subplots(1, 3)
    t = torch.linspace(0.05, 5, 200)
    for label, curve in (
        ("unit in {-1, +1}: E[g] = tanh(a/T)", (field / t).tanh()),
        ("  P(g = +1) = sigmoid(2a/T)", (2 * field / t).sigmoid()),
        ("unit in {0, 1}: E[g] = sigmoid(a/T)", (field / t).sigmoid()),
    ):
        (line,) = unit.plot(t.numpy(), curve.numpy(), label=label.strip())
        _points(unit, rows, label, line.get_color(), 5)
    unit.set(xlabel="T", title=f"one unit, E = -g a, a = {field:g}", xlim=(0, 5.2))
    orders = arrangements("AAB")
    energies = torch.tensor([line_energy(order, BONDS) for order in orders])
    t = torch.logspace(-1.2, 1.2, 200)
    curves = torch.stack([boltzmann(energies, float(s))[0] for s in t])
    for i, (order, style) in enumerate(zip(orders, ("-", "-", "--"), strict=True)):
        (line,) = atoms.plot(t.numpy(), curves[:, i].numpy(), style, label=order)
        _points(atoms, rows, f"atoms {order}: p", line.get_color(), 20)
    atoms.set(xlabel="T", xscale="log", title="three sites, E(AB bond) = -1, E(AA bond) = 0", ylabel="p")
    model = Ising(4, coupling)
    states = model.states()
    energies, size = model.energy(states).double(), states.flatten(1).mean(1).abs().double()
    t = torch.linspace(1, 7, 60)
    exact = torch.tensor(
        [[float(p @ energies) / 16, float(p @ size)] for p in (boltzmann(energies, float(s))[0] for s in t)]
    )
    for i, label in enumerate(("Ising 4x4: energy per site", "  |magnetisation|")):
        (line,) = lattice.plot(t.numpy(), exact[:, i].numpy(), label=label.split(": ")[-1].strip())
        _points(lattice, rows, label, line.get_color(), 7)
    lattice.set(xlabel="T", title=f"4x4 Ising, J = {coupling:g}: all 65 536 states")
    for ax in (unit, atoms, lattice):
        ax.legend(fontsize=8)
    return figure


def _points(ax: Axes, rows: list[Row], what: str, colour: str, last: float) -> None:
    chosen = [row for row in rows if row["what"] == what and 0 < float(row["T"]) <= last]
    ax.plot([float(row["T"]) for row in chosen], [float(row["found"]) for row in chosen], "o", color=colour, ms=5)


def _two(low: float, field: float) -> Tensor:
    """Energies of the two states of a unit."""
    return -field * torch.tensor([low, 1.0])


def _row(what: str, temperature: float, truth: Tensor, draws: Tensor) -> Row:
    draws = draws.double()
    err = float(draws.std() / len(draws) ** 0.5)
    return {"what": what, "T": temperature, "truth": float(truth), "found": float(draws.mean()), "err": err}


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
