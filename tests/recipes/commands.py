"""Recipes from the command line."""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers import RECIPES


def run_recipe(folder: Path, recipe: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a recipe in ``folder``, with one thread and W&B offline."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    command = [sys.executable, str(RECIPES / recipe), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
