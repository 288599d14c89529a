"""``ebm-lightning sample``: new samples of a model, as numbers and as a picture."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from ebm_lightning.callbacks.points import panel_height, plot_points
from ebm_lightning.evaluation.report import results_folder
from ebm_lightning.models import load
from ebm_lightning.rng import make_generator
from ebm_lightning.supports import Support


def main(
    checkpoint: str,
    n: int = 64,
    y: int | None = None,
    steps: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    output: Path | None = None,
) -> Tensor:
    """Draw new samples of a model, by new chains.

    Args:
        checkpoint: Checkpoint, or the name of a model that comes with the package, such as digits.
        n: Number of samples.
        y: Class to draw from; by default samples of p(x).
        steps: Steps of each chain; by default those of training, which are fewer than a new chain needs.
        device: Device, such as cuda.
        seed: Seed of the chains.
        output: Folder for samples.npy and samples.png, new or empty; by default the next free runs/samples-N.
    """
    model = load(checkpoint).to(device)
    folder = results_folder(output, "samples")
    generator = make_generator(seed, "samples", device=device)
    x = model.sample(n, y, steps=steps, generator=generator, progress=lambda loop: tqdm(loop, "samples")).cpu()
    np.save(folder / "samples.npy", x.numpy())
    picture(x, model.domain).savefig(folder / "samples.png", dpi=120)
    print(f"samples.npy and samples.png are in {folder.resolve()}")
    return x


def picture(x: Tensor, domain: Support) -> Figure:
    """Samples (N, *shape) as a grid of images, lines, or the distribution of each column."""
    columns = min(len(x), max(8, int(len(x) ** 0.5)))
    width = 6.0
    figure = Figure(figsize=(width, panel_height(x.shape[1:], len(x), columns, width)), layout="constrained")
    with torch.no_grad():
        plot_points(figure.add_subplot(), x, domain, columns)
    return figure
