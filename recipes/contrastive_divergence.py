"""The bias of CD-k's gradient: ``python recipes/contrastive_divergence.py``.

In a small classification RBM, summing over all states gives the exact gradient of the likelihood. The k-th power of the
transition matrix of a Gibbs sweep gives the exact distribution of chains after k sweeps, and so the exact bias of CD-k.
It is compared with the bias measured with chains.
"""

import json
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from matplotlib.figure import Figure
from torch import Tensor

from ebm_lightning import BlockGibbs, Chains, ClassificationRBM, DataInit, SupportInit
from ebm_lightning.evaluation.report import results_folder
from ebm_lightning.partition import sweep_matrix
from ebm_lightning.partition.enumeration import binary_states
from ebm_lightning.rng import make_generator

VISIBLE, HIDDEN, CLASSES = 5, 4, 3
X, Y = torch.tensor([[1.0, 1, 0, 0, 0], [0, 0, 1, 1, 1]]), torch.tensor([0, 1])  # the data
CHAINS: dict[str, Chains] = {"CD-k, from the data": DataInit(), "short runs, from uniform noise": SupportInit()}
SWEEPS = (1, 2, 5, 10, 20, 50)  # the k at which chains are run


def main(
    seed: int = 0,
    output: Path | None = None,
    sampler_steps: int = 100,
    num_chains: int = 40_000,
    coupling: float = 1.5,
) -> dict[str, Any]:
    """Print and plot the norm of the bias as a function of k, exact and from chains.

    Args:
        seed: Seed of weights and chains.
        output: Folder for results, new or empty; by default the next free runs/contrastive_divergence-N.
        sampler_steps: Largest number of Gibbs sweeps k.
        num_chains: Number of chains over which the gradient is averaged.
        coupling: Coupling that makes units agree, all on or all off. The larger it is, the slower chains mix.
    """
    output = results_folder(output, "contrastive_divergence")
    exact = sampled_gradient(rbm(seed, coupling, exact=True), X, Y)
    results: dict[str, Any] = {"exact_norm": float(exact.norm())}
    print(f"The exact gradient has norm {exact.norm():.4f}. Bias of the mean gradient from {num_chains} chains:")
    for name, chains in CHAINS.items():
        means = mean_gradients(rbm(seed, coupling), chains, sampler_steps)
        bias = [float((gradient - exact).norm()) for gradient in means]
        steps = [k for k in SWEEPS if k <= sampler_steps]
        measured = {k: measured_bias(rbm(seed, coupling, k, chains), num_chains, exact) for k in steps}
        results[name] = {"exact": bias, "chains": measured}
        for k, (norm, error) in measured.items():
            print(f"{name:32}k = {k:<4d} exact {bias[k - 1]:9.5f}   chains {norm:8.4f} +- {error:.4f}")
    (output / "bias.json").write_text(json.dumps(results, indent=2))
    plot_bias(results).savefig(output / "cd_bias.png", dpi=120)
    print(f"bias.json and cd_bias.png are in {output}")
    return results


def rbm(seed: int, coupling: float, k: int = 1, chains: Chains | None = None, exact: bool = False) -> ClassificationRBM:
    """The RBM, with the same weights for every k."""
    module = ClassificationRBM(
        VISIBLE,
        HIDDEN,
        CLASSES,
        sampler=BlockGibbs(k),
        chains=chains,
        conditional_weight=0.0,
        joint_weight=1.0,
        exact_gradient=exact,
        seed=seed,
    )
    generator, net = make_generator(seed, "weights"), module.rbm
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.5, generator=generator)
    with torch.no_grad():
        net.weight.add_(coupling)
        net.visible_bias.sub_(coupling * HIDDEN / 2)
        net.hidden_bias.sub_(coupling * VISIBLE / 2)
    module.start_chains()
    return module


def mean_gradients(module: ClassificationRBM, chains: Chains, sampler_steps: int) -> list[Tensor]:
    """The expected gradient of -log p(x, y) after 1, 2, ... sweeps of the chains, without sampling."""
    states, matrix = torch.cat(list(binary_states(VISIBLE))), sweep_matrix(module.rbm)
    p_x = torch.full((len(states),), 1 / len(states), dtype=torch.float64)
    if isinstance(chains, DataInit):
        p_x = (states[:, None] == X).all(2).double().mean(1)
    with torch.no_grad():
        p = (p_x[:, None] * module(states).double().softmax(1)).flatten()
    gradients = []
    for _ in range(sampler_steps):
        p = p @ matrix
        negative = (p.view(len(states), CLASSES).sum(1).float() * module.energy(states)).sum()
        gradients.append(flat_gradient(module, module.energy(X, Y).mean() - negative))
    return gradients


def measured_bias(module: ClassificationRBM, num_chains: int, exact: Tensor) -> tuple[float, float]:
    """Norm of the bias of the mean gradient of ``num_chains`` chains, and its error.

    The squared norm is the product of two independent halves, so that noise does not add to it.
    """
    repeats = num_chains // 2 // len(X)
    x, y = X.repeat(repeats, 1), Y.repeat(repeats)
    a, b = (sampled_gradient(module, x, y) - exact for _ in range(2))
    return max(0.0, float(a @ b)) ** 0.5, float((a - b).norm()) / 2


def sampled_gradient(module: ClassificationRBM, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of -log p(x, y), mean over the data, as training computes it."""
    positive = module.positive_phase(module.energy.logits(x), x, y)
    return flat_gradient(module, positive + module.negative_phase(x, y))


def flat_gradient(module: ClassificationRBM, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.rbm.parameters()))])


def plot_bias(results: dict[str, Any]) -> Figure:
    """Bias as a function of k, on logarithmic axes. Chains are shown where their bias is at least three errors."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, color in zip(CHAINS, ("tab:blue", "tab:orange"), strict=True):
        exact = results[name]["exact"]
        axes.plot(range(1, len(exact) + 1), exact, color=color, label=name)
        shown = [(k, norm, error) for k, (norm, error) in results[name]["chains"].items() if norm > 3 * error]
        if shown:
            k, norm, error = zip(*shown, strict=True)
            axes.errorbar(k, norm, error, color=color, marker="o", ms=4, capsize=2, ls="")
    axes.axhline(results["exact_norm"], color="grey", ls="--", label="norm of the exact gradient")
    axes.set(xscale="log", yscale="log", xlabel="k, block Gibbs sweeps", ylabel="|mean gradient - exact gradient|")
    axes.set_ylim(bottom=1e-4)
    axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
