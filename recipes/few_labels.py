"""Digits with five labels for each class: does p(x) of the other images help? ``python recipes/few_labels.py``.

The joint energy model gets 50 labeled images for -log p(y|x) and all training images, unlabeled, for -log p(x). It is
compared with the same network trained on the 50 images alone, and with scikit-learn's label spreading.
"""

import functools
import json
import statistics
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.utilities import CombinedLoader
from sklearn.semi_supervised import LabelSpreading
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from ebm_lightning import JEM, MALA, Adaptation, Compose, NormalScores, Quantiles, ReplayBuffer, Whitening
from ebm_lightning.data import Digits
from ebm_lightning.data.resumable_loader import identity_collate
from ebm_lightning.evaluation.report import results_folder
from ebm_lightning.networks import ThresholdConvNet

Split = Literal["val", "test"]
SHAPE = Digits.support.shape


class FewLabels(Digits):
    """The digits with a few labels: batches are ``{"clf": (x, y), "gen": x}``.

    Args:
        per_class: Labeled images of each class.
        seed: Seed of the choice of labeled images, and of the order of batches.
        batch_size: Images in each part of a batch.
        augment_unlabeled: Augment the unlabeled images as the labeled ones.
    """

    def __init__(self, per_class: int, seed: int, batch_size: int = 128, augment_unlabeled: bool = False) -> None:
        super().__init__(batch_size, "affine", batch_size)
        self.augment_unlabeled = augment_unlabeled
        self.per_class = per_class
        self.seed = seed

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(self.seed))
        labels = self.train.labels[order]
        self.labeled = torch.cat([order[labels == c][: self.per_class] for c in range(self.num_classes)])

    def train_dataloader(self) -> Any:
        n = self.batch_size
        repeated = self.labeled.repeat(-(-len(self.train) // len(self.labeled)))
        clf = DataLoader(
            Subset(self.train, repeated.tolist()), n, shuffle=True, drop_last=True, collate_fn=identity_collate
        )
        images = self.train if self.augment_unlabeled else self.train_gen
        gen = DataLoader(images, n, shuffle=True, drop_last=True, collate_fn=unlabeled)
        return CombinedLoader({"clf": clf, "gen": gen}, "min_size")


def unlabeled(batch: Any) -> Tensor:
    """The images of a batch, which the dataset has collated, without their labels."""
    return batch[0]


def main(
    seeds: int = 10,
    first_seed: int = 0,
    per_class: int = 5,
    max_steps: int = 900,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.3,
    generative_weight: float = 1.0,
    sampler_steps: int = 5,
    buffer_size: int = 256,
    augment_unlabeled: bool = True,
    split: Split = "test",
    output: Path | None = None,
    progress_bar: bool = True,
) -> dict[str, float]:
    """Accuracy with a few labels: with p(x), without it, and by label spreading.

    Args:
        seeds: Number of choices of labeled images.
        first_seed: First seed.
        per_class: Labeled images of each class.
        max_steps: Optimizer steps.
        learning_rate: Maximum learning rate of AdamW's one-cycle schedule.
        weight_decay: Weight decay of AdamW.
        generative_weight: Weight of -log p(x).
        sampler_steps: MALA steps per batch.
        buffer_size: Number of persistent chains.
        augment_unlabeled: Augment the unlabeled images too. The model then learns the density of augmented images.
        split: Images to measure accuracy on. Settings were chosen on "val".
        output: New or empty folder for metrics.json. Default: the next free runs/few-labels-N.
        progress_bar: Show a progress bar over the seeds.
    """
    folder = results_folder(output, "few-labels")
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec).*")
    rows: dict[str, list[float]] = {"with p(x)": [], "without p(x)": [], "label spreading": []}

    def accuracy(data: FewLabels, weight: float) -> float:
        L.seed_everything(data.seed, verbose=False)
        model = JEM(
            ThresholdConvNet(SHAPE, data.num_classes),
            data.num_classes,
            sampler=MALA(0.4, sampler_steps),
            chains=ReplayBuffer(buffer_size, 0.02),
            generative_weight=weight,
            energy_l2=0.0,
            optimizer=functools.partial(torch.optim.AdamW, lr=learning_rate, weight_decay=weight_decay),
            lr_scheduler=functools.partial(OneCycleLR, max_lr=learning_rate, total_steps=max_steps, pct_start=0.1),
            coordinates=Compose(
                [Quantiles(data.support, data.num_levels, smoothing=8.0), NormalScores(SHAPE), Whitening(SHAPE)]
            ),
            adaptation=Adaptation(),
        )
        trainer = L.Trainer(
            max_steps=max_steps,
            callbacks=[EMAWeightAveraging(decay=0.99)],
            gradient_clip_val=1.0,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(model, datamodule=data)
        x, y = getattr(data, split).tensors
        return float((model.eval()(x).argmax(1) == y).double().mean())

    print(f"Training a JEM with p(x) and a classifier without it, {seeds} times each: {max_steps} steps", flush=True)
    for seed in tqdm(range(first_seed, first_seed + seeds), "seeds", disable=not progress_bar):
        data = FewLabels(per_class, seed, augment_unlabeled=augment_unlabeled)
        data.setup()
        rows["with p(x)"].append(accuracy(data, generative_weight))
        rows["without p(x)"].append(accuracy(data, 0.0))
        rows["label spreading"].append(spreading(data, split))
    metrics = {name: statistics.mean(values) for name, values in rows.items()}
    (folder / "metrics.json").write_text(json.dumps({"mean": metrics, "seeds": rows}, indent=2))
    print(f"{split} accuracy with {per_class} labels for each class, {seeds} choices of them")
    best = max(rows, key=lambda name: statistics.mean(rows[name]))
    for name, values in rows.items():
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        ahead = all(better(rows[name], rows[other]) for other in rows if other != name) and name == best
        mark = "*" if ahead else " "
        print(f"  {name:18}↑ {statistics.mean(values):.4f}{mark} ± {spread:.4f} (standard deviation over the choices)")
    print("* better than the others on the same choices, by more than two standard errors")
    print(f"metrics.json is in {folder.resolve()}")
    return metrics


def better(values: list[float], others: list[float]) -> bool:
    """Whether paired values are larger by more than two standard errors of their difference."""
    gaps = [value - other for value, other in zip(values, others, strict=True)]
    return len(gaps) > 1 and statistics.mean(gaps) > 2 * statistics.stdev(gaps) / len(gaps) ** 0.5


def spreading(data: FewLabels, split: Split) -> float:
    """Accuracy of label spreading over the 7 nearest neighbors, as in scikit-learn's example with digits."""
    levels = data.train.levels.flatten(1)
    targets = torch.full((len(levels),), -1)
    targets[data.labeled] = data.train.labels[data.labeled]
    model = LabelSpreading(kernel="knn", n_neighbors=7).fit(levels.numpy(), targets.numpy())
    x, y = getattr(data, split).tensors
    box = data.support
    predicted = model.predict(((x - box.low) / (box.high - box.low) * data.num_levels).floor().flatten(1).numpy())
    return float((torch.from_numpy(predicted) == y).double().mean())


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
