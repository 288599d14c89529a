"""Prints pip constraints for the bounds in pyproject.toml: ``python .ci/constraints.py oldest|newest``.

``oldest`` pins every requirement to its lower bound, up to patch releases. ``newest`` needs no constraints.
"""

import sys
from pathlib import Path

import tomli
from packaging.requirements import Requirement


def oldest(requirement: Requirement) -> str | None:
    """The pin of a requirement's lower bound; None if it has none."""
    lower = [s.version for s in requirement.specifier if s.operator == ">="]
    return f"{requirement.name}=={lower[0]}.*" if lower else None


def main(which: str) -> None:
    if which not in ("oldest", "newest"):
        sys.exit(f"'which' should be oldest or newest, got {which!r}.")
    project = tomli.loads(Path("pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["images"], *extras["flows"], *extras["recipes"]]
    if which == "oldest":
        print("\n".join(sorted({pin for line in lines if (pin := oldest(Requirement(line)))})))


if __name__ == "__main__":
    main(sys.argv[1])
