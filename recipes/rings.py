"""Train a joint energy model of rings in the plane, with exact checks: ``python recipes/rings.py``.

Trains at temperature 1, computes log Z by quadrature and by annealing, and plots the learned and the true density.
"""

import functools
import json
import time
import warnings
from pathlib import Path

import lightning as L
import torch
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from torch import Tensor

from ebm_lightning import JEM, SGLD, ReplayBuffer, ais
from ebm_lightning.data import Rings
from ebm_lightning.evaluation.report import results_folder
from ebm_lightning.networks import MLP
from ebm_lightning.partition import quadrature
from ebm_lightning.partition.exact import grid
from ebm_lightning.rng import make_generator


def main(
    seed: int = 0,
    output: Path | None = None,
    epochs: int = 30,
    learning_rate: float = 2e-3,
    step_size: float = 0.005,
    sampler_steps: int = 25,
    buffer_size: int = 4096,
    reinit_prob: float = 0.01,
    progress_bar: bool = True,
) -> dict[str, float]:
    """Train JEM on three rings and compare its log Z with quadrature.

    Args:
        seed: Seed of the data, the weights and the chains.
        output: New or empty folder for the results. Default: the next free runs/rings-N.
        epochs: Passes over the 8192 training points.
        learning_rate: Maximum learning rate of Adam's one-cycle schedule.
        step_size: Step size of Langevin dynamics at temperature 1, in squared units of x per unit of energy.
        sampler_steps: Langevin steps per batch.
        buffer_size: Number of persistent chains.
        reinit_prob: Probability that a chain is reinitialized from uniform noise. With frequent reinitialization,
            chains do not reach the model's distribution, and the learned density is biased to compensate.
        progress_bar: Show a progress bar, with the loss and the validation accuracy.
    """
    start = time.time()
    output = results_folder(output, "rings")
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec).*")

    L.seed_everything(seed, verbose=False)
    data = Rings(seed=seed)
    module = JEM(
        MLP(2, data.num_classes, (128, 128, 128)),
        data.num_classes,
        data.support,
        SGLD.langevin(step_size, steps=sampler_steps),
        ReplayBuffer(buffer_size, reinit_prob),
        energy_l2=0.0,  # a penalty would flatten the density
        optimizer=functools.partial(torch.optim.Adam, lr=learning_rate),
        lr_scheduler=functools.partial(
            torch.optim.lr_scheduler.OneCycleLR,
            max_lr=learning_rate,
            total_steps=epochs * (data.size // data.batch_size),
        ),
    )
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=CSVLogger(output, "logs", ""),
        callbacks=[EMAWeightAveraging(decay=0.99)],
        gradient_clip_val=1.0,
        check_val_every_n_epoch=10,
        enable_checkpointing=False,
        enable_progress_bar=progress_bar,
        enable_model_summary=False,
    )
    print(f"Training a JEM of three rings: {epochs} epochs", flush=True)
    trainer.fit(module, datamodule=data)
    metrics = dict(trainer.test(module, datamodule=data, verbose=False)[0])
    trainer.save_checkpoint(output / "model.ckpt")

    samples = long_chains(module, 2048, seed)
    metrics.update(measure(module, data, samples), seconds=time.time() - start)
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2))
    plot_densities(module, data, samples, metrics["log_z"]).savefig(output / "density.png", dpi=120)
    print(table(metrics))
    print(f"{metrics['seconds']:.0f} seconds. metrics.json, model.ckpt and density.png are in {output.resolve()}")
    return metrics


ROWS = {
    "Classifier": {"test/accuracy": "accuracy ↑", "test/nll": "negative log-likelihood of labels, nats ↓"},
    "log Z, nats": {"log_z": "by quadrature", "ais/log_z": "by annealing", "ais/std_err": "its standard error"},
    "Density": {
        "log_likelihood": "log-likelihood of the model, nats ↑",
        "log_likelihood_truth": "of the true density",
        "energy_data": "mean energy of the data, nats",
        "energy_samples": "of samples, which should agree with it",
    },
}


def table(metrics: dict[str, float]) -> str:
    """The metrics in groups."""
    lines = []
    for title, rows in ROWS.items():
        lines += [title, *(f"  {label:42}{metrics[key]:12.4f}" for key, label in rows.items() if key in metrics)]
    return "\n".join(lines)


def long_chains(module: JEM, n: int, seed: int) -> Tensor:
    """Samples of ``n`` new chains: 500 steps from uniform noise, shape (n, 2)."""
    generator = make_generator(seed, "rings samples")
    sampler = SGLD.langevin(0.005, steps=500)
    return sampler(
        module.energy, module.support.sample(n, generator=generator), support=module.support, generator=generator
    )


def measure(module: JEM, data: Rings, samples: Tensor) -> dict[str, float]:
    """Mean energies, log Z, and the mean log-likelihood of the test points under the model and the true density."""
    x, _ = data.test.tensors
    log_z = quadrature(module.energy, data.support)
    annealed = ais(module.energy, data.support, generator=make_generator(0, "rings log Z"))
    with torch.no_grad():
        energy = module.energy(x).mean().item()
        return {
            "energy_data": energy,
            "energy_samples": module.energy(samples).mean().item(),
            "log_z": log_z,
            "ais/log_z": annealed.log_z,
            "ais/std_err": annealed.std_err,
            "ais/ess": annealed.ess,
            "log_likelihood": -energy - log_z,
            "log_likelihood_truth": data.log_prob(x).mean().item(),
        }


def plot_densities(module: JEM, data: Rings, samples: Tensor, log_z: float) -> Figure:
    """Plot the true density, the model's density and the samples."""
    points, wall = 256, data.support.high
    x = grid(data.support, points)
    with torch.no_grad():
        densities = data.log_prob(x).exp(), (-module.energy(x) - log_z).exp()
    top = float(densities[0].max())
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    axes = figure.subplots(1, 3)
    for ax, density, title in zip(axes, densities, ("p(x) of the data", "p(x) of the model"), strict=False):
        image = density.view(points, points).T.numpy()
        mappable = ax.imshow(image, origin="lower", extent=(-wall, wall, -wall, wall), vmin=0, vmax=top)
        ax.set_title(title)
    figure.colorbar(mappable, ax=axes[:2], shrink=0.8)
    axes[2].plot(*samples.T.numpy(), ".", markersize=1)
    axes[2].set(title="new chains, 500 steps from noise", xlim=(-wall, wall), ylim=(-wall, wall), aspect="equal")
    return figure


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
