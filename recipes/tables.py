"""Densities of tables and series, side by side: ``python recipes/tables.py``.

A joint energy model in fitted coordinates is compared with a Gaussian, a Gaussian mixture chosen by BIC and a
normalizing flow, by the mean log density of rows that none has seen. Columns are standardized by the training rows.
"""

import functools
import json
import math
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
import zuko
from jsonargparse import auto_cli
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

import ebm_lightning as ebm
from ebm_lightning.evaluation.report import results_folder
from ebm_lightning.networks import MLP


def main(
    names: tuple[Literal["cancer", "wine", "series"], ...] = ("cancer", "wine", "series"),
    seeds: int = 5,
    split: Literal["val", "test"] = "test",
    max_steps: int = 400,
    shrinkage: float = 0.3,
    output: Path | None = None,
) -> dict[str, dict[str, list[float]]]:
    """Fit all densities to several splits of the data, and print the mean log density of other rows, in nats.

    Args:
        names: Data: breast cancer (569 x 30), wine (178 x 13), and 1500 noisy waves of three shapes (32 steps).
        seeds: Splits: 70 % of the rows for training, 10 % for validation, 20 % for test.
        split: Rows to judge by. Settings were chosen on val.
        max_steps: Training steps of the joint energy model.
        shrinkage: Of the covariance of each class towards the average, in its reference density.
        output: New or empty folder for the results.
    """
    folder = results_folder(output, "tables")
    results: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    sources: dict[str, Callable[..., Any]] = {"cancer": load_breast_cancer, "wine": load_wine, "series": waves}
    warnings.filterwarnings("ignore", ".*(many workers|LeafSpec|logging interval|val_dataloader).*")
    for name, seed in tqdm([(name, seed) for name in names for seed in range(seeds)]):
        L.seed_everything(seed, verbose=False)
        columns, classes = sources[name](return_X_y=True)
        x, y = torch.as_tensor(columns).float(), torch.as_tensor(classes).long()
        train, val, test = torch.randperm(len(x)).tensor_split([int(0.7 * len(x)), int(0.8 * len(x))])
        x = (x - x[train].mean(0)) / x[train].std(0)
        rows = val if split == "val" else test
        values = closed_forms(x[train], x[rows]) | joint(x[train], y[train], x[rows], y[rows], max_steps, shrinkage)
        for key, value in values.items():
            results[name].setdefault(key, []).append(value)
    for title, table in results.items():
        print(f"\n{title:28} mean over {seeds} splits, standard error")
        for key, numbers in table.items():
            error = statistics.stdev(numbers) / math.sqrt(seeds) if seeds > 1 else math.nan
            print(f"{key:28} {statistics.mean(numbers):10.3f} {error:8.3f}")
    (folder / "metrics.json").write_text(json.dumps(results, indent=2))
    print(f"metrics.json is in {folder}")
    return results


def closed_forms(train: Tensor, rows: Tensor) -> dict[str, float]:
    """Mean log density of a Gaussian, a mixture and a flow."""
    options = [(k, kind) for k in range(1, 7) for kind in ("full", "tied", "diag")]
    mixtures = [GaussianMixture(k, covariance_type=kind, reg_covar=1e-3).fit(train) for k, kind in options]
    flow = ebm.Flow(zuko.flows.NSF(train.shape[1], transforms=3), train.shape[1:], epochs=60)
    flow.fit(list(train.split(100)))
    u = flow(rows)
    return {
        "Gaussian": float(LedoitWolf().fit(train).score(rows)),
        "mixture, by BIC": float(min(mixtures, key=lambda mixture: mixture.bic(train)).score(rows)),
        "neural spline flow": float((flow.codomain.log_prob(u) + flow.log_abs_det_jacobian(rows, u)).mean()),
    }


def joint(train: Tensor, labels: Tensor, rows: Tensor, y: Tensor, max_steps: int, shrinkage: float) -> dict[str, float]:
    """Mean log density of a joint energy model and of its reference density, and what says whether they hold."""
    shape, num_classes = train.shape[1:], int(labels.max()) + 1
    optimizer = functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=1.0)
    model = ebm.JEM(
        MLP(shape[0], num_classes, (64, 64)),
        num_classes,
        ebm.Euclidean(shape, reference=ebm.ClassGaussians(ridge=0.03, shrinkage=shrinkage)),
        ebm.ReferenceJumps(ebm.MALA(0.3, steps=5)),
        ebm.ReplayBuffer(256, reinit_prob=0.0),
        energy_l2=0.0,
        optimizer=optimizer,
        coordinates=ebm.Compose([ebm.Quantiles(ebm.Euclidean(shape), cells=8), ebm.NormalScores(shape)]),
        adaptation=ebm.Adaptation(),
    )
    loader = DataLoader(TensorDataset(train, labels), min(100, len(train)), shuffle=True, drop_last=True)
    L.Trainer(
        max_steps=max_steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, loader)
    model.eval()
    log_z = model.estimate_log_z(rows, temperatures=100, num_chains=500)
    with torch.no_grad():
        log_p, logits = -model.energy(rows).double() - log_z.log_z, model(rows)
    return {
        "joint energy model": float(log_p.mean()),
        "its reference density": float((log_p + log_z.log_z - logits.logsumexp(1)).mean()),
        "its accuracy": float((logits.argmax(1) == y).float().mean()),
        "its log Z is reliable": float(log_z.reliable),
        "standard error of log Z": log_z.std_err,
    }


def waves(return_X_y: bool = True) -> tuple[Tensor, Tensor]:
    """Sine, square and triangle waves of random phase and frequency, with noise: 1500 series of 32 steps."""
    y = torch.randint(3, (1500,))
    t = torch.linspace(0, 1, 32) * (2 + torch.rand(1500, 1)) + torch.rand(1500, 1)
    sine = torch.sin(2 * math.pi * t)
    shapes = torch.stack([sine, sine.sign(), 2 / math.pi * torch.asin(sine)], 1)
    return shapes[torch.arange(1500), y] + 0.2 * torch.randn(1500, 32), y


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
