"""Train a classification RBM (Larochelle & Bengio 2008) on MNIST: ``python recipes/mnist_rbm.py --data.root DIR``.

Training images are binarized at random for each batch: a gray level is the probability that the pixel is on. Test
images keep their gray levels as probabilities, as in the paper. The error on images thresholded at 0.5 is also printed.
"""

import functools
import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import auto_cli
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import MNIST
from torchvision.utils import save_image

from ebm_lightning import Binary, BlockGibbs, Calibration, ClassificationRBM, DataInit, ReplayBuffer
from ebm_lightning.data import Binarized, resumable_loader
from ebm_lightning.data.resumable_loader import identity_collate
from ebm_lightning.evaluation.report import results_folder
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
    epochs: int = 15,
    hidden: int = 500,
    learning_rate: float = 5e-3,
    batch_size: int = 100,
    conditional_weight: float = 1.0,
    joint_weight: float = 0.01,
    sampler_steps: int = 1,
    buffer_size: int = 0,
    holdout: int = 0,
    size: int = 60_000,
    progress_bar: bool = True,
) -> dict[str, float]:
    """Train a classification RBM and evaluate it on the test images.

    Args:
        data: Location of the images.
        seed: Seed of the weights, the chains, the binarization and the data order.
        output: New or empty folder for the results. Default: the next free runs/mnist_rbm-N.
        epochs: Passes over the training images.
        hidden: Number of hidden units.
        learning_rate: Maximum learning rate of Adam's one-cycle schedule.
        batch_size: Images per batch.
        conditional_weight: Weight of -log p(y|x). Training is discriminative if only this weight is positive.
        joint_weight: Weight of -log p(x, y). Training is generative if only this weight is positive.
        sampler_steps: Gibbs sweeps per batch, the k of CD-k.
        buffer_size: Number of persistent chains. With 0, chains start at the data (CD-k).
        holdout: Number of training images to evaluate instead of the test images, for tuning. The test images are
            then not read.
        size: Number of training images to use, at most 60000; includes the holdout.
        progress_bar: Show a progress bar.
    """
    start = time.time()
    output = results_folder(output, "mnist_rbm")
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec|val_dataloader).*")

    L.seed_everything(seed, verbose=False)
    x, y = images(data.root, train=True)
    order = torch.randperm(len(x), generator=make_generator(0, "holdout"))[:size]
    held_out, train = order[:holdout], order[holdout:]
    batches = resumable_loader(Binarized(x[train], y[train]), batch_size, collate_fn=identity_collate)
    evaluated = (x[held_out], y[held_out]) if holdout else images(data.root, train=False)
    module = ClassificationRBM(
        784,
        hidden,
        10,
        Binary((784,), probabilities=True),
        BlockGibbs(sampler_steps),
        ReplayBuffer(buffer_size, 0.0) if buffer_size else DataInit(),
        conditional_weight=conditional_weight,
        joint_weight=joint_weight,
        optimizer=functools.partial(torch.optim.Adam, lr=learning_rate),
        lr_scheduler=functools.partial(
            torch.optim.lr_scheduler.OneCycleLR, max_lr=learning_rate, total_steps=epochs * len(batches)
        ),
        seed=seed,
    )
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=CSVLogger(output, "logs", ""),
        callbacks=[Calibration(directory=output)],
        enable_checkpointing=False,
        enable_progress_bar=progress_bar,
        enable_model_summary=False,
    )
    print(f"Training a classification RBM with {hidden} hidden units: {epochs} epochs", flush=True)
    trainer.fit(module, batches)
    seconds = time.time() - start
    trainer.save_checkpoint(output / "model.ckpt")
    metrics = evaluate(trainer, module, *evaluated) | {"seconds": seconds}
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2))
    save_image(filters(module), output / "filters.png", nrow=10)
    kind = f"{holdout} held-out" if holdout else "test"
    errors = f"{metrics['error_percent']:.2f} % ↓, thresholded {metrics['error_percent_cut']:.2f} %"
    print(f"Error on {kind} images: {errors}")
    print(f"Calibration error {metrics['test/ece']:.4f} ↓, negative log-likelihood {metrics['test/nll']:.4f} nats ↓")
    print(f"{seconds:.0f} seconds. metrics.json, model.ckpt, filters.png and logs are in {output.resolve()}")
    return metrics


def images(folder: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Gray levels in [0, 1], shape (N, 784), and labels, shape (N,)."""
    mnist = MNIST(folder, train=train, download=True)
    return mnist.data.flatten(1).float() / 255, mnist.targets


def evaluate(trainer: L.Trainer, module: ClassificationRBM, x: Tensor, y: Tensor) -> dict[str, float]:
    """Test metrics, and the classification error in percent on gray images and on images thresholded at 0.5."""

    def test(x: Tensor) -> Any:
        return trainer.test(module, DataLoader(TensorDataset(x, y), 500), verbose=False)[0]

    gray, binary = test(x), test((x > 0.5).float())
    accuracies = {"error_percent": gray["test/accuracy"], "error_percent_cut": binary["test/accuracy"]}
    return {**gray, **{name: 100 * (1 - accuracy) for name, accuracy in accuracies.items()}}


def filters(module: ClassificationRBM) -> Tensor:
    """The 100 rows of W with the largest norms as images, shape (100, 1, 28, 28), each scaled by its largest weight."""
    weight = module.rbm.weight.detach()
    strongest = weight[weight.norm(dim=1).argsort(descending=True)[:100]]
    return (0.5 + 0.5 * strongest / strongest.abs().amax(1, keepdim=True)).view(-1, 1, 28, 28)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
