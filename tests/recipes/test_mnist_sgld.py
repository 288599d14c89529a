"""recipes/mnist_sgld.py from the command line, on random images in the files' format."""

import json

import pytest
import yaml

from ebm_lightning import JEM
from ebm_lightning.data import MNIST
from tests.data.pictures import write_idx
from tests.helpers import RECIPES, recipe
from tests.recipes.commands import run_recipe

SMALL = [
    *("--data.root", "data", "--data.batch_size", "50", "--data.separate_batch_size", "20"),
    *("--width", "2", "--sampler_steps", "2", "--max_steps", "3", "--baseline_max_steps", "3", "--buffer_size", "40"),
    *("--progress_bar", "false"),
]


@pytest.mark.slow
def test_both_models_are_trained_and_evaluated(tmp_path):
    write_idx(tmp_path / "data", sizes=(5200, 60))
    done = run_recipe(tmp_path, "mnist_sgld.py", *SMALL, "--data.download", "false")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "mnist-0"
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
    assert metrics["test/images"] == 60
    assert {"test/accuracy", "baseline/test/accuracy", "ais/log_z", "samples/fid_classifier"} <= set(metrics)
    report = (folder / "evaluation" / "report.html").read_text()
    assert "ClassGaussians fitted to training images" in report
    assert "its images were not found: FashionMNIST" in report
    assert "Out-of-distribution detection" in done.stdout


@pytest.mark.slow
def test_the_config_for_fashionmnist_trains_and_saves_both_models(tmp_path):
    write_idx(tmp_path / "data", "FashionMNIST", sizes=(5200, 20))
    config = ["--config", str(RECIPES / "fashionmnist_sgld.yaml")]
    done = run_recipe(tmp_path, "mnist_sgld.py", *config, *SMALL, "--evaluate", "false", "--keep_memory", "true")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "fashionmnist-0"
    assert set(json.loads((folder / "training.json").read_text())["val/accuracy"]) == {"baseline", "jem"}
    jem = JEM.load_from_checkpoint(folder / "jem.ckpt", weights_only=True)
    assert jem.generative_weight == 1
    assert type(jem.chains.initial).__name__ == "ClassGaussians"
    assert JEM.load_from_checkpoint(folder / "baseline.ckpt", weights_only=True).generative_weight == 0
    assert (folder / "samples-chains-step-000003.png").exists()
    assert not (folder / "evaluation").exists()


@pytest.mark.slow
def test_settings_of_the_data_have_the_names_of_the_data_module(tmp_path):
    done = run_recipe(tmp_path, "mnist_sgld.py", "--data", "FashionMNIST", "--data.size", "100", "--print_config")
    data = yaml.safe_load(done.stdout)["data"]
    assert data["class_path"] == "ebm_lightning.data.FashionMNIST"
    assert {key: data["init_args"][key] for key in ("batch_size", "separate_batch_size", "augment", "noise_std")} == {
        "batch_size": 256,
        "separate_batch_size": 64,
        "augment": "crop",
        "noise_std": 0.1,
    }
    assert data["init_args"]["size"] == 100


@pytest.mark.slow
def test_help_is_short_and_explains_every_option(tmp_path):
    text = run_recipe(tmp_path, "mnist_sgld.py", "--help").stdout
    assert len(text.splitlines()) < 140
    for option in ("--data.help", "--max_steps", "--baseline_max_steps", "--sampler_steps", "--initial", "--evaluate"):
        assert option in text
    assert "Langevin steps of each chain per batch" in text


def test_a_variant_leaves_the_data_module_as_it_is():
    data = MNIST("data", noise_std=0.5, separate_batch_size=8)
    plain = recipe("mnist_sgld.py").variant(data, noise_std=0.0, separate_batch_size=None)
    assert (plain.noise_std, plain.separate_batch_size, plain.batch_size) == (0.0, None, 64)
    assert (data.noise_std, data.separate_batch_size) == (0.5, 8)
