"""The classification RBM on MNIST, after Larochelle & Bengio (2008): ``python recipes/mnist_rbm.py --data DIR``.

Training images are binarised anew for each batch, each grey level the probability of a pixel that is on. Evaluated
images keep their grey levels as probabilities, as in the paper; the error on images cut at 0.5 is printed beside it.
"""

import functools
import json
import time
import warnings
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
from ebm_lightning.data import Binarised, resumable_loader
from ebm_lightning.report import results_folder
from ebm_lightning.streams import make_generator


def main(
    data: Path = Path("data"),
    seed: int = 0,
    output: Path | None = None,
    epochs: int = 15,
    hidden: int = 500,
    learning_rate: float = 5e-3,
    batch_size: int = 100,
    conditional_weight: float = 1.0,
    joint_weight: float = 0.01,
    k: int = 1,
    buffer_size: int = 0,
    holdout: int = 0,
    size: int = 60_000,
    progress_bar: bool = True,
) -> dict[str, float]:
    """Train a classification RBM and evaluate it on the test images.

    Args:
        data: Folder with MNIST in it, downloaded there if absent.
        seed: Of weights, chains, binarisation and the order of images.
        output: Folder for results, new or empty; by default the next free runs/mnist_rbm-N.
        epochs: Passes over the training images.
        hidden: Hidden units.
        learning_rate: Peak of Adam's one-cycle schedule.
        batch_size: Images in a batch.
        conditional_weight: Weight of -log p(y|x): alone it makes training discriminative.
        joint_weight: Weight of -log p(x, y): alone it makes training generative.
        k: Gibbs sweeps of each chain for each batch.
        buffer_size: Number of persistent chains; 0 starts chains at the data (CD-k).
        holdout: Training images kept for choosing settings: evaluated in place of the test images, which are not read.
        size: Training images to use, of 60000.
        progress_bar: Show a progress bar.
    """
    start = time.time()
    output = results_folder(output, "mnist_rbm")
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec|val_dataloader).*")

    L.seed_everything(seed, verbose=False)
    x, y = images(data, train=True)
    order = torch.randperm(len(x), generator=make_generator(0, "holdout"))[:size]
    kept, used = order[:holdout], order[holdout:]
    batches = resumable_loader(Binarised(x[used], y[used]), batch_size, collate_fn=lambda batch: batch)
    evaluated = (x[kept], y[kept]) if holdout else images(data, train=False)
    module = ClassificationRBM(
        784,
        hidden,
        10,
        Binary((784,), probabilities=True),
        BlockGibbs(k),
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
    trainer.fit(module, batches)
    seconds = time.time() - start
    trainer.save_checkpoint(output / "model.ckpt")
    metrics = evaluate(trainer, module, *evaluated) | {"seconds": seconds}
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2))
    save_image(filters(module), output / "filters.png", nrow=10)
    print("\n".join(f"{name:28}{value:12.4f}" for name, value in metrics.items()))
    print(f"metrics.json, model.ckpt and filters.png are in {output}")
    return metrics


def images(folder: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Grey levels in [0, 1], shape (N, 784), and labels (N,)."""
    mnist = MNIST(folder, train=train, download=True)
    return mnist.data.flatten(1).float() / 255, mnist.targets


def evaluate(trainer: L.Trainer, module: ClassificationRBM, x: Tensor, y: Tensor) -> dict[str, float]:
    """The test metrics, and the errors in per cent on grey images and on images cut at 0.5."""

    def test(x: Tensor) -> Any:
        return trainer.test(module, DataLoader(TensorDataset(x, y), 500), verbose=False)[0]

    cut, grey = test((x > 0.5).float()), test(x)
    errors = {"error_percent": grey["test/accuracy"], "error_percent_cut": cut["test/accuracy"]}
    return {**grey, **{name: 100 * (1 - accuracy) for name, accuracy in errors.items()}}


def filters(module: ClassificationRBM) -> Tensor:
    """The 100 strongest rows of W as pictures (100, 1, 28, 28), each scaled to its own largest weight."""
    weight = module.rbm.weight.detach()
    strongest = weight[weight.norm(dim=1).argsort(descending=True)[:100]]
    return (0.5 + 0.5 * strongest / strongest.abs().amax(1, keepdim=True)).view(-1, 1, 28, 28)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
