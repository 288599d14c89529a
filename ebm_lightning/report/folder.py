"""Where a run's results go: a folder of their own, so that nothing is ever written over."""

from pathlib import Path


def results_folder(output: Path | None, name: str) -> Path:
    """A new or empty folder, made if it is not there.

    Arguments:
        output: The folder asked for; by default the next free ``runs/name-0``, ``runs/name-1`` and so on.
        name: Of the recipe.

    Raises:
        ValueError: ``output`` holds something.
    """
    if output is None:
        output = next(p for n in range(10**6) if not (p := Path("runs") / f"{name}-{n}").exists())
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"'output' should be a new or empty folder, got {output}, which holds results. Name another.")
    output.mkdir(parents=True, exist_ok=True)
    return output
