"""Recipes run as a user runs them: from the command line, in an empty folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import RECIPES

AIS = ("--ais_temperatures", "5", "--ais_num_chains", "20")


def run(folder: Path, recipe: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a recipe in ``folder``, with one thread and without a W&B account."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    environment.pop("WANDB_API_KEY", None)
    command = [sys.executable, str(RECIPES / recipe), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> tuple[Path, str]:
    """The results of a short run of ``digits.py``: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("digits")
    options = {"epochs": 2, "cold_epochs": 1, "width": 4, "step_size": 0.2, "sampler_steps": 2}
    options |= {"ais_temperatures": 5, "fresh_steps": 2}
    lines = [f"{name}: {value}" for name, value in (options | {"ais_num_chains": 20}).items()]
    (folder / "run.yaml").write_text("\n".join(lines))
    done = run(folder, "digits.py", "--config", "run.yaml", "--seed", "3")
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "digits-0", done.stdout + done.stderr
