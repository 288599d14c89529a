"""The folder for the results of a run. Existing results are never overwritten."""

from itertools import count
from pathlib import Path


def results_folder(output: Path | str | None, name: str) -> Path:
    """A new or empty folder, created if it does not exist.

    Arguments:
        output: The folder; by default the next free one of ``runs/name-0``, ``runs/name-1``, ...
        name: Name of the recipe.

    Raises:
        ValueError: ``output`` contains files.
    """
    numbered = (Path("runs") / f"{name}-{n}" for n in count())
    folder = Path(output) if output is not None else next(path for path in numbered if not path.exists())
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"'output' should be a new or empty folder, got {folder}, which has files. Choose another.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
