"""Runs of a sweep: each has its own folder."""

import os
import subprocess
import sys

import pytest
import yaml

from tests.data.pictures import write_idx
from tests.helpers import RECIPES

pytestmark = pytest.mark.slow
SMALL = (
    *("--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.limit_val_batches=1", "--data.root=data"),
    *("--data.batch_size=20", "--data.separate_batch_size=8", "--data.download=false", "--model.sampler.steps=1"),
    *("--trainer.enable_progress_bar=false", "--model.chains.size=20", "--trainer.log_every_n_steps=1"),
)


def command() -> list[str]:
    """What the agent of a sweep starts."""
    parts = yaml.safe_load((RECIPES / "sweep.yaml").read_text())["command"]
    values = {"${env}": ["/usr/bin/env"], "${interpreter}": [sys.executable], "${args}": list(SMALL)}
    return [word for part in parts for word in values.get(part, [part])]


def test_runs_of_a_sweep_do_not_overwrite_one_another(tmp_path):
    pytest.importorskip("wandb")
    (tmp_path / "recipes").symlink_to(RECIPES)
    write_idx(tmp_path / "data", sizes=(5200, 20))
    for run in ("one", "two"):
        environment = {**os.environ, "WANDB_RUN_ID": run, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command(), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name for path in tmp_path.iterdir()} == {"recipes", "data", "runs"}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"sweep"}
    for run in ("one", "two"):
        folder = tmp_path / "runs" / "sweep" / run
        assert list(folder.rglob("*.ckpt"))
        assert list(folder.rglob("samples-chains-step-*.png"))
        assert (folder / "config.yaml").exists()
