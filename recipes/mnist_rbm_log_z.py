"""log Z of an RBM on MNIST, exact and by annealing: ``python recipes/mnist_rbm_log_z.py --data.root DIR``.

With 20 hidden units, all 2^20 of their states can be summed, which gives the exact log Z to compare annealing
(after Salakhutdinov & Murray 2008) and its lower bound with. Images are binarized at random. The training loop is
hand-written, without Lightning.
"""

import functools
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor
from torchvision.datasets import MNIST

from ebm_lightning import Binary, BlockGibbs, DataInit, JointEnergy, LogZ, exact_log_z
from ebm_lightning.evaluation.report import results_folder
from ebm_lightning.partition import classification_rbm_ais
from ebm_lightning.rbm import RBMLogits
from ebm_lightning.rng import make_generator


@dataclass(frozen=True)
class Data:
    """Location of the images.

    Args:
        root: Folder with MNIST in torchvision's layout. Missing files are downloaded to it.
    """

    root: Path = Path("data")


def main(
    data: Data = Data(),
    seed: int = 0,
    output: Path | None = None,
    epochs: int = 10,
    hidden: int = 20,
    labels: bool = False,
    learning_rate: float = 0.05,
    sampler_steps: int = 1,
    temperatures: int = 10_000,
    num_chains: int = 100,
    size: int = 60_000,
) -> dict[str, float]:
    """Train an RBM by CD-k, and compare exact and annealed log Z and test log-likelihood.

    Args:
        data: Location of the images.
        seed: Seed of binarization, weights, chains and annealing.
        output: Folder for results, new or empty; by default the next free runs/mnist_rbm_log_z-N.
        epochs: Passes over the training images.
        hidden: Number of hidden units, at most 20.
        labels: Model p(x, y), with ten class units, instead of p(x).
        learning_rate: Learning rate of plain stochastic gradient descent.
        sampler_steps: Gibbs sweeps of each chain per batch (the k of CD-k).
        temperatures: Number of annealing steps.
        num_chains: Number of annealed chains.
        size: Number of training images to use, at most 60000.
    """
    output = results_folder(output, "mnist_rbm_log_z")
    torch.manual_seed(seed)
    x, y = binary_images(data.root, seed, labels, train=True)
    x, y = x[:size], y[:size]
    support = Binary((784,))
    energy = JointEnergy(RBMLogits(784, hidden, 10 if labels else 1, support), support)
    print(f"Training an RBM with {hidden} hidden units: {epochs} epochs", flush=True)
    train(energy, x, y, epochs, learning_rate, BlockGibbs(sampler_steps), make_generator(seed, "chains"))

    x_test, y_test = binary_images(data.root, seed, labels, train=False)
    metrics: dict[str, float] = {}
    start = time.time()
    exact = exact_log_z(energy, support)
    metrics["exact/seconds"], start = time.time() - start, time.time()
    anneal = functools.partial(
        classification_rbm_ais, energy, data=x[:200], temperatures=temperatures, num_chains=num_chains
    )
    estimate = anneal(generator=make_generator(seed, "ais"))
    metrics["ais/seconds"] = time.time() - start
    uniform = anneal(data_mean=torch.full((784,), 0.5), generator=make_generator(seed, "uniform"))
    with torch.no_grad():
        free = -energy(x_test).double().mean().item()
        joint = -energy(x_test, y_test).double().mean().item()
    for name, log_z in (("exact", exact), ("ais", estimate), ("ais_from_uniform", uniform)):
        metrics |= log_likelihoods(name, log_z, free, joint if labels else None)
    metrics["ais/reliable"] = float(estimate.reliable)
    metrics["ais_from_uniform/reliable"] = float(uniform.reliable)
    metrics["ais/lower_bound_error"] = estimate.lower - exact.log_z
    metrics["ais/error"] = estimate.log_z - exact.log_z
    metrics["ais_from_uniform/error"] = uniform.log_z - exact.log_z
    if labels and estimate.per_class is not None and exact.per_class is not None:
        metrics["ais/largest_error_of_log_z_y"] = (estimate.per_class - exact.per_class).abs().max().item()
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2))
    for start_of, log_z in {"the data's mean": estimate, "uniform bits": uniform}.items():
        print(f"log Z annealed from {start_of}: {log_z.why or 'all diagnostics pass.'}")
    print("\n".join(f"{name:36}{value:12.4f}" for name, value in metrics.items()))
    print(f"metrics.json is in {output.resolve()}")
    return metrics


def binary_images(folder: Path, seed: int, labels: bool, train: bool) -> tuple[Tensor, Tensor]:
    """Binary images, shape (N, 784), and labels, shape (N,), which are all 0 without class units."""
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
    """CD-k: lower E(x, y) at the data and raise E(x) at the end of chains that start there."""
    rbm, chains = energy.classifier, DataInit()
    assert isinstance(rbm, RBMLogits)
    rbm.observe(x, y)
    with torch.no_grad():
        rbm.visible_bias.copy_((0.05 + 0.9 * rbm.data_mean).logit())  # the base rates (Hinton 2012, sec. 8)
        rbm.weight.normal_(0, 0.01, generator=generator)
    optimizer = torch.optim.SGD(rbm.parameters(), learning_rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(100):
            initial, _ = chains.draw(len(rows), data=x[rows])
            x_neg = sampler(energy, initial, generator=generator)
            loss = energy(x[rows], y[rows]).mean() - energy(x_neg).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def log_likelihoods(name: str, log_z: LogZ, free: float, joint: float | None) -> dict[str, float]:
    """log Z with its error, and the mean test log-likelihoods, in nats."""
    rows = {"log_z": log_z.log_z, "std_err": log_z.std_err, "test_log_p_x": free - log_z.log_z}
    if joint is not None:
        rows["test_log_p_x_y"] = joint - log_z.log_z
    return {f"{name}/{key}": value for key, value in rows.items()}


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
