"""The folder for the results of a run. Existing results are never overwritten."""

import atexit
from itertools import count
from pathlib import Path

_parents: dict[Path, list[Path]] = {}  # folders around each results folder that were created for it, inner before outer


def results_folder(output: Path | str | None, name: str) -> Path:
    """A new or empty folder. It is created, so that no other run takes it, and removed at exit if it is still empty.

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
    if not folder.exists():
        _parents[folder.resolve()] = [path for path in folder.resolve().parents if not path.exists()]
        folder.mkdir(parents=True)
        atexit.register(remove_if_empty, folder.resolve())
    return folder


def remove_if_empty(folder: Path) -> None:
    """Remove a results folder without files: what a failed call leaves behind.

    Folders that :func:`results_folder` created around it are removed too, unless something else is in them.

    Arguments:
        folder: The folder. Nothing happens if it does not exist.
    """
    below = sorted(folder.rglob("*"), reverse=True) if folder.is_dir() else []
    if all(path.is_dir() for path in below):
        for path in [*below, folder, *_parents.get(folder.resolve(), [])]:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
