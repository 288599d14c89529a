"""Small systems of statistical physics with all their states in hand: what annealing and sampling are held against."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm_lightning.boltzmann import RBMLogits
from ebm_lightning.energies import JointEnergy
from ebm_lightning.partition.states import binary_states
from ebm_lightning.supports import Binary


def boltzmann(energies: Tensor, temperature: float) -> tuple[Tensor, float]:
    r"""Probabilities and log Z of a system with these energies.

    .. math:: p_s = e^{-E_s / T} / Z

    At temperature 0 the ground states share all probability, at infinity all states do. log Z is measured from the
    lowest energy at temperature 0, where it would otherwise be infinite: the log of the number of ground states.

    Arguments:
        energies: Of every state, shape (S,).
        temperature: T, in units of energy (Boltzmann's constant is 1), 0 or above, or infinite.

    Raises:
        ValueError: A negative temperature.
    """
    if not temperature >= 0:
        raise ValueError(f"'temperature' should be 0 or positive, got {temperature}.")
    energies = energies.double()
    if temperature == 0:
        lowest = (energies == energies.min()).double()
        return lowest / lowest.sum(), math.log(float(lowest.sum()))
    log_p = -energies / temperature
    return log_p.softmax(0), float(log_p.logsumexp(0))


def unit_mean(field: float, temperature: float, low: float = -1.0, high: float = 1.0) -> float:
    r"""E[g] of one unit with two states and the energy -g a, by its sum over both.

    .. math::
        g \in \{-1, +1\}: \mathbb{E}[g] = \tanh(a / T), \quad P(g = +1) = \mathrm{sigmoid}(2 a / T); \qquad
        g \in \{0, 1\}: \mathbb{E}[g] = P(g = 1) = \mathrm{sigmoid}(a / T)

    Texts mix these up: the sigmoid of 2 a / T belongs to spins, that of a / T to bits.

    Arguments:
        field: a.
        temperature: T.
        low, high: The two states.
    """
    states = torch.tensor([low, high], dtype=torch.float64)
    return float(boltzmann(-field * states, temperature)[0] @ states)


def arrangements(atoms: str) -> list[str]:
    """The distinct orders of ``atoms`` on a line of sites: of AAB they are AAB, ABA and BAA."""
    return sorted({"".join(order) for order in itertools.permutations(atoms)})


def line_energy(arrangement: str, bonds: Mapping[str, float]) -> float:
    """Sum of the energies of neighbouring pairs on a line; ``bonds`` names each pair in alphabetical order, as AB."""
    return sum(bonds["".join(sorted(pair))] for pair in itertools.pairwise(arrangement))


@dataclass(frozen=True)
class Ising:
    r"""Spins on a square lattice that closes on itself.

    .. math:: E(s) = -J \sum_{\langle i j \rangle} s_i s_j - B \sum_i s_i, \qquad s_i \in \{-1, +1\}

    White and black squares of the checkerboard touch only each other, so given one colour the other is independent:
    an RBM with a visible unit for each white and a hidden unit for each black square.

    Arguments:
        side: L, even and at least 4.
        coupling: J, in units of energy.
        field: B.

    Raises:
        ValueError: L is odd or below 4.
    """

    side: int = 4
    coupling: float = 1.0
    field: float = 0.0

    def __post_init__(self) -> None:
        if self.side < 4 or self.side % 2:
            raise ValueError(f"'side' should be even and at least 4, got {self.side}.")

    def energy(self, spins: Tensor) -> Tensor:
        """E of spins (N, L, L), shape (N,)."""
        bonds = (spins * (spins.roll(1, 1) + spins.roll(1, 2))).flatten(1).sum(1)
        return -self.coupling * bonds - self.field * spins.flatten(1).sum(1)

    def states(self) -> Tensor:
        """All states, shape (2^(L^2), L, L).

        Raises:
            ValueError: More than 20 sites.
        """
        return torch.cat(list(binary_states(self.side**2))).view(-1, self.side, self.side) * 2 - 1

    def rbm(self, temperature: float) -> tuple[JointEnergy, float]:
        """The checkerboard's RBM, whose x are the white squares, and what to add to its log Z to get that of spins."""
        white, black = self._colours()
        alone = torch.eye(self.side**2)[white].view(-1, self.side, self.side)  # each white square on its own board
        touching = torch.stack([alone.roll(step, axis) for step in (1, -1) for axis in (1, 2)]).sum(0).flatten(1)
        support = Binary((len(white),))
        net = RBMLogits(len(white), len(black), 1, support)
        bond, sites, bonds = self.coupling / temperature, self.side**2, 2 * self.side**2
        with torch.no_grad():
            net.class_weight.zero_()
            net.weight.copy_(4 * bond * touching[:, black].T)
            net.visible_bias.fill_(2 * self.field / temperature - 8 * bond)
            net.hidden_bias.fill_(2 * self.field / temperature - 8 * bond)
        return JointEnergy(net, support), bond * bonds - self.field / temperature * sites

    def spins(self, white: Tensor, black: Tensor) -> Tensor:
        """The lattice (N, L, L) of visible and hidden units, each (N, L^2 / 2)."""
        lattice = torch.empty(len(white), self.side**2, dtype=white.dtype, device=white.device)
        for squares, units in zip(self._colours(), (white, black), strict=True):
            lattice[:, squares] = 2 * units - 1
        return lattice.view(-1, self.side, self.side)

    def _colours(self) -> tuple[Tensor, Tensor]:
        """Numbers of the white and of the black squares."""
        row = torch.arange(self.side)
        colour = ((row[:, None] + row) % 2).flatten()
        return (colour == 0).nonzero().flatten(), (colour == 1).nonzero().flatten()
