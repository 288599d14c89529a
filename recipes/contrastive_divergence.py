"""How far CD-k's gradient is from the likelihood's: ``python recipes/contrastive_divergence.py``.

A classification RBM small enough to sum all states gives the exact gradient; the same module with chains from the data
(CD-k) or from uniform noise (short runs) gives the others. Their difference, averaged over many chains, is the bias.
"""

import json
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from matplotlib.figure import Figure
from torch import Tensor

from ebm_lightning import BlockGibbs, Chains, ClassificationRBM, DataInit, SupportInit
from ebm_lightning.streams import make_generator

STARTS: dict[str, type[Chains]] = {"CD-k: from the data": DataInit, "short runs: from uniform noise": SupportInit}


def main(
    seed: int = 0,
    output: Path | None = None,
    sweeps: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100),
    chains: int = 40_000,
    scale: float = 1.0,
) -> dict[str, Any]:
    """Print and draw the length of the bias, and of its Monte Carlo error, against k.

    Args:
        seed: Of weights and chains.
        output: Folder for results, new or empty; by default the next free runs/contrastive_divergence-N.
        sweeps: Values of k.
        chains: Chains that the gradient is averaged over.
        scale: Standard deviation of the weights: the larger, the slower chains forget where they started.
    """
    output = output or next(p for n in range(10**6) if not (p := Path("runs") / f"contrastive_divergence-{n}").exists())
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"'output' should be a new or empty folder, got {output}, which holds results. Name another.")
    output.mkdir(parents=True, exist_ok=True)
    x = torch.tensor([[1.0, 1, 0, 0, 0], [0, 0, 1, 1, 1]]).repeat(chains // 2, 1)
    y = torch.arange(len(x)) % 2
    exact = gradient(module(seed, scale, 1, DataInit(), True), x, y)
    results: dict[str, Any] = {"k": list(sweeps), "exact_length": float(exact.norm())}
    print(f"The exact gradient has length {exact.norm():.3f}. Bias, and its Monte Carlo error:")
    for name, start in STARTS.items():
        halves = [[gradient(module(seed, scale, k, start(), False, half), x, y) for half in (0, 1)] for k in sweeps]
        # Two independent halves: their product is free of the noise's square, their difference measures it.
        squares = [float((a - exact) @ (b - exact)) for a, b in halves]
        results[name] = [max(0.0, square) ** 0.5 for square in squares]
        results[f"{name}, error"] = [float((a - b).norm()) / 2 for a, b in halves]
        for k, bias, error in zip(sweeps, results[name], results[f"{name}, error"], strict=True):
            print(f"{name:34}k = {k:<6d}{bias:10.4f}{error:10.4f}")
    (output / "bias.json").write_text(json.dumps(results, indent=2))
    picture(results).savefig(output / "cd_bias.png", dpi=120)
    print(f"bias.json and cd_bias.png are in {output}")
    return results


def module(seed: int, scale: float, k: int, chains: Chains, exact: bool, half: int = 0) -> ClassificationRBM:
    """The same RBM for every k; chains of their own."""
    made = ClassificationRBM(
        5,
        4,
        3,
        sampler=BlockGibbs(k),
        chains=chains,
        conditional_weight=0.0,
        joint_weight=1.0,
        exact_gradient=exact,
        seed=seed,
    )
    generator = make_generator(seed, "weights")
    for p in made.rbm.parameters():
        torch.nn.init.normal_(p, std=scale, generator=generator)
    made.start_chains()
    made.generator = make_generator(seed, "chains", k, half)
    return made


def gradient(made: ClassificationRBM, x: Tensor, y: Tensor) -> Tensor:
    """Of -log p(x, y), mean over the data, all parameters in one vector."""
    made.generative_loss(x, y).backward()
    return torch.cat([p.grad.flatten() for p in made.rbm.parameters() if p.grad is not None])


def picture(results: dict[str, Any]) -> Figure:
    """Bias against k on logarithmic axes."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name in STARTS:
        axes.errorbar(results["k"], results[name], results[f"{name}, error"], marker="o", ms=4, capsize=2, label=name)
    axes.axhline(results["exact_length"], color="grey", ls="--", label="length of the exact gradient")
    axes.set(xscale="log", yscale="log", xlabel="k, block Gibbs sweeps", ylabel="|mean gradient - exact gradient|")
    axes.set_ylim(bottom=1e-3)
    axes.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
