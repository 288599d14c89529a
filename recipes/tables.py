"""Densities of a table or of series, side by side: ``python recipes/tables.py --name wine``.

Joint energy models in fitted coordinates, a Gaussian, a Gaussian mixture chosen by BIC and a normalizing flow, by the
mean log density of rows that none of them has seen. Columns are standardized by the training rows.
"""

import functools
import json
import math
import statistics
import warnings
from itertools import product
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
import zuko
from jsonargparse import auto_cli
from sklearn.covariance import LedoitWolf
from sklearn.mixture import GaussianMixture
from torch import Tensor
from tqdm import trange

import ebm_lightning as ebm
from ebm_lightning.data import Table, Waves
from ebm_lightning.evaluation.report import results_folder
from ebm_lightning.networks import MLP


def main(
    name: Literal["cancer", "wine", "series"] = "cancer",
    seeds: int = 5,
    split: Literal["val", "test"] = "test",
    max_steps: int = 400,
    output: Path | None = None,
) -> None:
    """Fit all densities to several splits of the data, and print the mean log density of other rows, in nats.

    Args:
        name: Data: breast cancer (569 x 30), wine (178 x 13), or 1500 noisy waves of three shapes (32 steps).
        seeds: Splits: 70 % of the rows for training, 10 % for validation, 20 % for test.
        split: Rows to judge by. Settings were chosen on val.
        max_steps: Training steps of the joint energy models.
        output: New or empty folder for the results.
    """
    folder, results = results_folder(output, name), []
    warnings.filterwarnings("ignore", ".*(many workers|LeafSpec|logging interval|val_dataloader|in eval mode).*")
    for seed in trange(seeds):
        L.seed_everything(seed, verbose=False)
        data = Waves(split_seed=seed) if name == "series" else Table(name, split_seed=seed)
        data.setup()
        train, rows = (part.tensors[0] for part in (data.train, data.test if split == "test" else data.val))
        kinds = product(range(1, 7), ("full", "tied", "diag"))
        mixtures = [GaussianMixture(k, covariance_type=kind, reg_covar=1e-3).fit(train) for k, kind in kinds]
        flow = ebm.Flow(zuko.flows.NSF(data.columns, transforms=3), (data.columns,), epochs=60)
        flow.fit(list(train.split(100)))
        values = {
            "Gaussian": LedoitWolf().fit(train).score(rows),
            "Gaussian mixture by BIC": min(mixtures, key=lambda mixture: mixture.bic(train)).score(rows),
            "neural spline flow": float(
                (flow.codomain.log_prob(u := flow(rows)) + flow.log_abs_det_jacobian(rows, u)).mean()
            ),
        }
        scores = ebm.Compose([ebm.Quantiles(data.support, cells=8), ebm.NormalScores((data.columns,))])
        values |= joint(data, rows, scores, "scores", max_steps)
        results.append(values | joint(data, rows, flow, "flow", max_steps))
    (folder / "metrics.json").write_text(json.dumps(results, indent=2))
    for key in results[0]:
        numbers = [result[key] for result in results]
        error = statistics.stdev(numbers) / math.sqrt(seeds) if seeds > 1 else math.nan
        print(f"{key:40} {statistics.mean(numbers):9.3f} +- {error:.3f}")
    print(f"mean over {seeds} splits, with its standard error; metrics.json is in {folder}")


def joint(data: Table | Waves, rows: Tensor, coordinates: ebm.Coordinates, where: str, steps: int) -> dict[str, float]:
    """Train a joint energy model relative to a Gaussian for each class. Mean log densities, and whether they hold."""
    model = ebm.JEM(
        MLP(data.columns, data.num_classes, (64, 64)),
        data.num_classes,
        ebm.Euclidean((data.columns,), reference=ebm.ClassGaussians(ridge=0.03, shrinkage=0.3)),
        ebm.ReferenceJumps(ebm.MALA(0.3, steps=5)),
        ebm.ReplayBuffer(256, reinit_prob=0.0),
        energy_l2=0.0,
        optimizer=functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=1.0),
        coordinates=coordinates,
        adaptation=ebm.Adaptation(),
    )
    quiet: Any = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    L.Trainer(max_steps=steps, max_epochs=-1, **quiet).fit(model, data.train_dataloader())
    log_z = model.eval().estimate_log_z(rows, temperatures=100, num_chains=500)
    with torch.no_grad():
        log_p = -model.energy(rows).double() - log_z.log_z
        reference = log_p + log_z.log_z - model(rows).logsumexp(1)
    values = {"joint energy model": log_p.mean(), "its reference density": reference.mean()}
    values |= {"log Z is reliable": log_z.reliable, "error of log Z": log_z.std_err}
    return {f"{key} ({where})": float(value) for key, value in values.items()}


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
