"""How far CD-k's gradient is from the likelihood's: ``python recipes/contrastive_divergence.py``.

A classification RBM small enough to sum all states gives the exact gradient, and the powers of its sweep's transition
matrix the exact law of chains after k sweeps: the bias of CD-k is a number, not an estimate. Chains are run beside it.
"""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from jsonargparse import auto_cli
from matplotlib.figure import Figure
from torch import Tensor

from ebm_lightning import BlockGibbs, Chains, ClassificationRBM, DataInit, SupportInit
from ebm_lightning.partition import sweep_matrix
from ebm_lightning.partition.states import binary_states
from ebm_lightning.report import results_folder
from ebm_lightning.streams import make_generator

VISIBLE, HIDDEN, CLASSES = 5, 4, 3
X, Y = torch.tensor([[1.0, 1, 0, 0, 0], [0, 0, 1, 1, 1]]), torch.tensor([0, 1])  # the data
STARTS: dict[str, Chains] = {"CD-k, from the data": DataInit(), "short runs, from uniform noise": SupportInit()}
SWEEPS = (1, 2, 5, 10, 20, 50)  # at which chains are run


def main(
    seed: int = 0, output: Path | None = None, longest: int = 100, chains: int = 40_000, coupling: float = 1.5
) -> dict[str, Any]:
    """Print and draw the length of the bias against k, exact and from chains.

    Args:
        seed: Of weights and chains.
        output: Folder for results, new or empty; by default the next free runs/contrastive_divergence-N.
        longest: Largest k.
        chains: Chains that the gradient is averaged over.
        coupling: Holds units together, all on or all off: the larger, the longer chains remember where they started.
    """
    output = results_folder(output, "contrastive_divergence")
    true = sampled(rbm(seed, coupling, exact=True), X, Y)
    results: dict[str, Any] = {"exact_length": float(true.norm())}
    print(f"The exact gradient has length {true.norm():.4f}. Bias of the mean gradient from {chains} chains:")
    for name, start in STARTS.items():
        bias = [float((g - true).norm()) for g in expected(rbm(seed, coupling), start, longest)]
        found = {k: from_chains(seed, coupling, start, k, chains, true) for k in SWEEPS if k <= longest}
        results[name] = {"exact": bias, "chains": found}
        for k, (length, error) in found.items():
            print(f"{name:32}k = {k:<4d} exact {bias[k - 1]:9.5f}   chains {length:8.4f} +- {error:.4f}")
    (output / "bias.json").write_text(json.dumps(results, indent=2))
    picture(results).savefig(output / "cd_bias.png", dpi=120)
    print(f"bias.json and cd_bias.png are in {output}")
    return results


def rbm(seed: int, coupling: float, k: int = 1, start: Chains | None = None, exact: bool = False) -> ClassificationRBM:
    """The same RBM for every k."""
    made = ClassificationRBM(
        VISIBLE,
        HIDDEN,
        CLASSES,
        sampler=BlockGibbs(k),
        chains=start,
        conditional_weight=0.0,
        joint_weight=1.0,
        exact_gradient=exact,
        seed=seed,
    )
    generator, net = make_generator(seed, "weights"), made.rbm
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.5, generator=generator)
    with torch.no_grad():
        net.weight.add_(coupling)
        net.visible_bias.sub_(coupling * HIDDEN / 2)
        net.hidden_bias.sub_(coupling * VISIBLE / 2)
    mock.patch.object(made, "log").start()  # no trainer listens
    made.start_chains()
    return made


def expected(made: ClassificationRBM, start: Chains, longest: int) -> list[Tensor]:
    """The mean gradient of -log p(x, y) that chains give after 1, 2, ... sweeps, without sampling."""
    states, matrix = torch.cat(list(binary_states(VISIBLE))), sweep_matrix(made.rbm)
    first = torch.full((len(states),), 1 / len(states), dtype=torch.float64)
    if isinstance(start, DataInit):
        first = (states[:, None] == X).all(2).double().mean(1)
    with torch.no_grad():
        law = (first[:, None] * made(states).double().softmax(1)).flatten()
    gradients = []
    for _ in range(longest):
        law = law @ matrix
        negative = (law.view(len(states), CLASSES).sum(1).float() * made.energy(states)).sum()
        gradients.append(flat_gradient(made, made.energy(X, Y).mean() - negative))
    return gradients


def from_chains(seed: int, coupling: float, start: Chains, k: int, n: int, true: Tensor) -> tuple[float, float]:
    """The bias that ``n`` chains show, and its error: two halves, whose product is free of the noise's square."""
    made, halves, repeats = rbm(seed, coupling, k, start), [], n // 2 // len(X)
    for _ in range(2):
        halves.append(sampled(made, X.repeat(repeats, 1), Y.repeat(repeats)) - true)
    return max(0.0, float(halves[0] @ halves[1])) ** 0.5, float((halves[0] - halves[1]).norm()) / 2


def sampled(made: ClassificationRBM, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of -log p(x, y), mean over the data, as training takes it."""
    return flat_gradient(made, made.generative_loss(x, y))


def flat_gradient(made: ClassificationRBM, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(made.rbm.parameters()))])


def picture(results: dict[str, Any]) -> Figure:
    """Bias against k on logarithmic axes: exact as lines, chains as points where they can tell it from 0."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, colour in zip(STARTS, ("tab:blue", "tab:orange"), strict=True):
        exact = results[name]["exact"]
        axes.plot(range(1, len(exact) + 1), exact, color=colour, label=name)
        seen = [(k, length, error) for k, (length, error) in results[name]["chains"].items() if length > 3 * error]
        if seen:
            k, length, error = zip(*seen, strict=True)
            axes.errorbar(k, length, error, color=colour, marker="o", ms=4, capsize=2, ls="")
    axes.axhline(results["exact_length"], color="grey", ls="--", label="length of the exact gradient")
    axes.set(xscale="log", yscale="log", xlabel="k, block Gibbs sweeps", ylabel="|mean gradient - exact gradient|")
    axes.set_ylim(bottom=1e-4)
    axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
