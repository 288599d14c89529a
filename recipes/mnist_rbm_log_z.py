"""log Z of an RBM on MNIST, exact and annealed: ``python recipes/mnist_rbm_log_z.py --data DIR``.

Twenty hidden units are few enough to sum all 2^20 of their states, so annealing can be held against the truth (after
Salakhutdinov & Murray 2008). Images are binarised at random. A loop of one's own, without Lightning.
"""

import functools
import json
import time
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor
from torchvision.datasets import MNIST

from ebm_lightning import Binary, BlockGibbs, DataInit, JointEnergy, LogZ, exact_log_z
from ebm_lightning.boltzmann import RBMLogits
from ebm_lightning.partition import classification_rbm_ais
from ebm_lightning.report import results_folder
from ebm_lightning.streams import make_generator


def main(
    data: Path = Path("data"),
    seed: int = 0,
    output: Path | None = None,
    epochs: int = 10,
    hidden: int = 20,
    labels: bool = False,
    learning_rate: float = 0.05,
    k: int = 1,
    temperatures: int = 10_000,
    chains: int = 100,
    size: int = 60_000,
) -> dict[str, float]:
    """Train an RBM by CD-k, and compare log Z and the test log-likelihood from its sum and from annealing.

    Args:
        data: Folder with MNIST in it, downloaded there if absent.
        seed: Of binarisation, weights, chains and annealing.
        output: Folder for results, new or empty; by default the next free runs/mnist_rbm_log_z-N.
        epochs: Passes over the training images.
        hidden: Hidden units, at most 20.
        labels: Model p(x, y), with ten class units, in place of p(x).
        learning_rate: Of plain stochastic gradient descent.
        k: Gibbs sweeps of each chain for each batch.
        temperatures: Steps of annealing.
        chains: Annealed chains.
        size: Training images to use, of 60000.
    """
    output = results_folder(output, "mnist_rbm_log_z")
    torch.manual_seed(seed)
    x, y = binary_images(data, seed, labels, train=True)
    x, y = x[:size], y[:size]
    support = Binary((784,))
    energy = JointEnergy(RBMLogits(784, hidden, 10 if labels else 1, support), support)
    train(energy, x, y, epochs, learning_rate, BlockGibbs(k), make_generator(seed, "chains"))

    x_test, y_test = binary_images(data, seed, labels, train=False)
    metrics: dict[str, float] = {}
    start = time.time()
    truth = exact_log_z(energy, support)
    metrics["exact/seconds"], start = time.time() - start, time.time()
    anneal = functools.partial(classification_rbm_ais, energy, temperatures=temperatures, chains=chains)
    estimate = anneal(generator=make_generator(seed, "ais"))
    metrics["ais/seconds"] = time.time() - start
    uniform = anneal(data_mean=torch.full((784,), 0.5), generator=make_generator(seed, "uniform"))
    with torch.no_grad():
        free = -energy(x_test).double().mean().item()
        joint = -energy(x_test, y_test).double().mean().item()
    for name, log_z in (("exact", truth), ("ais", estimate), ("ais_from_uniform", uniform)):
        metrics |= figures(name, log_z, free, joint if labels else None)
    metrics["ais/error"] = estimate.log_z - truth.log_z
    metrics["ais_from_uniform/error"] = uniform.log_z - truth.log_z
    if labels and estimate.per_class is not None and truth.per_class is not None:
        metrics["ais/largest_error_of_log_z_y"] = (estimate.per_class - truth.per_class).abs().max().item()
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2))
    print("\n".join(f"{name:36}{value:12.4f}" for name, value in metrics.items()))
    return metrics


def binary_images(folder: Path, seed: int, labels: bool, train: bool) -> tuple[Tensor, Tensor]:
    """Images of 0 and 1, shape (N, 784), and labels (N,), all 0 where there are no class units."""
    mnist = MNIST(folder, train=train, download=True)
    x = torch.bernoulli(mnist.data.flatten(1).float() / 255, generator=make_generator(seed, "binarise", str(train)))
    return x, mnist.targets if labels else torch.zeros_like(mnist.targets)


def train(
    energy: JointEnergy,
    x: Tensor,
    y: Tensor,
    epochs: int,
    learning_rate: float,
    sampler: BlockGibbs,
    generator: torch.Generator,
) -> None:
    """CD-k: E(x, y) of data down, E(x) of the ends of chains that started there up."""
    rbm, chains = energy.classifier, DataInit()
    assert isinstance(rbm, RBMLogits)
    rbm.observe(x, y)
    with torch.no_grad():
        rbm.visible_bias.copy_((0.05 + 0.9 * rbm.data_mean).logit())  # from the base rates (Hinton 2012, sec. 8)
        rbm.weight.normal_(0, 0.01, generator=generator)
    optimizer = torch.optim.SGD(rbm.parameters(), learning_rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(100):
            start, _ = chains.draw(len(rows), data=x[rows])
            x_neg = sampler(energy, start, generator=generator)
            loss = energy(x[rows], y[rows]).mean() - energy(x_neg).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def figures(name: str, log_z: LogZ, free: float, joint: float | None) -> dict[str, float]:
    """log Z, its error bar, and the average test log-likelihoods that follow, in nats."""
    rows = {"log_z": log_z.log_z, "std_err": log_z.std_err, "test_log_p_x": free - log_z.log_z}
    if joint is not None:
        rows["test_log_p_x_y"] = joint - log_z.log_z
    return {f"{name}/{key}": value for key, value in rows.items()}


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
