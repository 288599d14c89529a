"""recipes/mnist.py and recipes/tables.py from the command line."""

import json

import pytest

from ebm_lightning import NoiseContrastiveJEM
from tests.data.pictures import write_idx
from tests.recipes.commands import run_recipe

SMALL = [
    *("--data.root", "data", "--data.batch_size", "50", "--data.separate_batch_size", "20", "--data.size", "200"),
    *("--data.download", "false", "--width", "2", "--max_steps", "3", "--reference_epochs", "1"),
    *("--reference_samples", "40", "--temperatures", "3", "--num_chains", "20", "--fresh_steps", "2"),
    *("--progress_bar", "false"),
]


@pytest.mark.slow
def test_a_density_of_images_is_trained_and_evaluated(tmp_path):
    write_idx(tmp_path / "data", sizes=(5200, 60))
    done = run_recipe(tmp_path, "mnist.py", *SMALL)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "mnist-0"
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
    assert {"test/accuracy", "baseline/test/accuracy", "ais/bits_per_dim", "samples/fid_classifier"} <= set(metrics)
    assert metrics["ais/bits_per_dim"] < 9
    jem = NoiseContrastiveJEM.load_from_checkpoint(folder / "jem.ckpt", weights_only=True)
    assert jem.support.reference.fitted
    assert str(folder.name) in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_densities_of_tables_are_compared(tmp_path):
    done = run_recipe(tmp_path, "tables.py", "--name", "wine", "--seeds", "1", "--max_steps", "5")
    assert done.returncode == 0, done.stderr
    (values,) = json.loads((tmp_path / "runs" / "wine-0" / "metrics.json").read_text())
    assert {"Gaussian", "Gaussian mixture by BIC", "neural spline flow", "joint energy model (flow)"} <= set(values)
