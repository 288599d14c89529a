"""The index of the trained models: ``models.json``, with one entry for each."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
INDEX = FOLDER / "models.json"


@dataclass(frozen=True)
class Shipped:
    """A trained model that comes with the package.

    Attributes:
        file: Name of its checkpoint.
        sha256: Of the checkpoint, in hexadecimal.
        what: What it is, in a few words.
        made_by: The command that trained it.
        data: Its data module, as a description with ``class_path`` and ``init_args``.
        settings: Arguments of :func:`ebm_lightning.evaluate` that were not the defaults.
        metrics: Value and standard error of each metric, by :func:`ebm_lightning.evaluate`.
    """

    file: str
    sha256: str
    what: str
    made_by: str
    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    metrics: Mapping[str, tuple[float, float]]


def shipped_models() -> dict[str, Shipped]:
    """All trained models that come with the package, by name."""
    return {name: Shipped(**entry) for name, entry in json.loads(INDEX.read_text()).items()}


def add_to_index(name: str, model: Shipped) -> None:
    """Write or replace the entry of a model."""
    entries = {key: asdict(entry) for key, entry in (shipped_models() | {name: model}).items()}
    INDEX.write_text(json.dumps(entries, indent=1) + "\n")
