"""recipes/features.py from the command line."""

import json

import pytest

from tests.recipes.commands import run_recipe

SMALL = ["--epochs", "1", "--max_steps", "3", "--temperatures", "3", "--num_chains", "20", "--progress_bar", "false"]


@pytest.mark.slow
def test_features_of_digits_are_compared(tmp_path):
    pytest.importorskip("pytorch_ood")
    done = run_recipe(tmp_path, "features.py", *SMALL, "--seeds", "2")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "features-0"
    runs = json.loads((folder / "metrics.json").read_text())["runs"]
    assert len(runs) == 2
    assert {"FeatureJEM/textures/auroc", "KNN/textures/auroc_low", "accuracy of the head"} <= set(runs[0])
    assert "FeatureJEM" in (folder / "report.html").read_text()
    again = run_recipe(tmp_path, "features.py", *SMALL, "--networks", str(folder), "--logger", "wandb")
    assert again.returncode == 0, again.stderr
    repeated = json.loads((tmp_path / "runs" / "features-1" / "metrics.json").read_text())["runs"][0]
    assert repeated["accuracy of the network"] == runs[0]["accuracy of the network"]
