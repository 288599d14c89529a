"""The gallery: the order of its scripts, and the state in which each starts."""

import logging
import warnings
from typing import Any

import lightning.pytorch  # noqa: F401  (it sets up its logs when it is imported)
import torch
from sphinx_gallery.sorting import FileNameSortKey

ORDER = (
    "temperature.py",
    "free_function.py",
    "ring_density.py",
    "log_z.py",
    "coordinates.py",
    "digits.py",
    "ood_threshold.py",
    "block_gibbs.py",
    "contrastive_divergence.py",
)


class Order(FileNameSortKey):  # type: ignore[misc]
    """From the first ideas to special models; new scripts come last."""

    def __call__(self, filename: str) -> str:
        return f"{ORDER.index(filename) if filename in ORDER else len(ORDER):03d}{filename}"


def reset(gallery_conf: dict[str, Any], fname: str) -> None:
    """Every script starts with the same random state, one thread and quiet logs."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec|set_vital|tensorboard).*")
