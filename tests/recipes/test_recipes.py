"""The recipes, run from the command line."""

import ast
import json
import os
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from ebm_lightning import JEM
from tests.data.pictures import made_up
from tests.helpers import RECIPES
from tests.recipes.conftest import AIS, run

SETS = ("noise", "shuffled", "inverted", "transposed", "flipped", "interpolated")
METRICS = {"test/accuracy", "test/nll", "test/ece", *(f"ood/{name}/auroc" for name in SETS)}


@pytest.mark.slow
def test_digits_writes_metrics_figures_and_checkpoints(digits):
    folder, _ = digits
    metrics = json.loads((folder / "metrics.json").read_text())
    models = {f"{model}/{name}" for name in METRICS for model in ("density", "classifier", "cold")}
    assert set(metrics) >= METRICS | models | {"seconds", "floor/histograms/bits_per_dim", "agreement/energy_gap"}
    assert all(isinstance(value, float) for value in metrics.values())
    figures = {path.name for path in folder.glob("*.png")}
    assert figures == {
        "samples-conditional.png",
        "samples-unconditional.png",
        "test-reliability.png",
        "ais-path.png",
        "test-extremes.png",
        *(f"ood-{name}.png" for name in SETS),
    }
    model = JEM.load_from_checkpoint(folder / "checkpoints" / "model.ckpt", weights_only=True)
    assert model.coordinates.fitted
    assert model.sampler.step_size == pytest.approx(0.2, rel=0.5)  # it has adapted
    assert model.sampler.step_size != 0.2


@pytest.mark.slow
def test_digits_prints_all_models_and_where_the_results_are(digits):
    folder, printed = digits
    lines = printed.splitlines()
    line = next(line for line in lines if line.split()[:2] == ["transposed", "↑"])
    assert len(line.split()) == 5
    assert "class histograms" in printed
    assert any(line.endswith(f"logs are in {folder.resolve()}") for line in lines)
    for name in ("the density, a JEM", "the classifier, without", "the cold model, a JEM"):
        assert sum(line.startswith(f"Training {name}") for line in lines) == 1


@pytest.mark.slow
def test_progress_bars_fit_100_columns_and_show_the_validation_accuracy(digits):
    """Without the bar, whose width tqdm adapts."""
    bars = [part for part in re.split("[\r\n]", digits[1]) if part.startswith("Epoch") and "val/accuracy=" in part]
    assert bars
    assert all(len(re.sub(r"\|[^|]*\|", "||", bar)) < 95 for bar in bars)


@pytest.mark.slow
def test_digits_does_not_overwrite_results(digits):
    folder, _ = digits
    before = (folder / "metrics.json").read_text()
    done = run(folder, "digits.py", "--output", str(folder))
    assert done.returncode != 0
    assert "'output' should be a new or empty folder" in done.stderr
    assert (folder / "metrics.json").read_text() == before


@pytest.mark.slow
def test_help_documents_every_option(tmp_path):
    done = run(tmp_path, "digits.py", "--help")
    assert done.returncode == 0
    for option in ("--seed", "--output", "--logger {csv,tensorboard,wandb}", "--config", "--step_size"):
        assert option in done.stdout
    config = yaml.safe_load(run(tmp_path, "digits.py", "--print_config").stdout)
    assert config["sampler_steps"] == 5
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ood", "[noise,svhn]"), "svhn"),
        (("--step_size", "-1"), "'step_size' should be positive, got -1.0"),
        (("--buffer_size", "32"), "'size' should be at least the batch size 128"),
        (("--epochs", "many"), "epochs"),
    ],
)
def test_errors_name_the_option(tmp_path, arguments, message):
    done = run(tmp_path, "digits.py", "--epochs", "1", *arguments)
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.slow
def test_generative_weight_zero_is_the_baseline(tmp_path):
    few = ("--epochs", "1", "--width", "4", *AIS)
    done = run(tmp_path, "digits.py", "--generative_weight", "0", "--output", "out", *few)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert all(metrics[name] == metrics[f"classifier/{name}"] for name in METRICS)


@pytest.mark.slow
def test_estimate_log_z_of_a_checkpoint(digits, tmp_path):
    checkpoint = (digits[0] / "checkpoints" / "model.ckpt").resolve()
    arguments = ("--checkpoint", str(checkpoint), "--temperatures", "9", "--num_chains", "40", "--output", "out")
    done = run(tmp_path, "estimate_log_z.py", *arguments)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "log_z.json").read_text())
    assert results["interval"][0] < results["log_z"] < results["interval"][1]
    assert len(results["prior"]) == 10
    assert ("UNRELIABLE" in done.stdout) is not results["reliable"]
    assert (tmp_path / "out" / "ess.png").exists()


@pytest.mark.slow
def test_rings_records_log_z(tmp_path):
    done = run(tmp_path, "rings.py", "--epochs", "1", "--output", "out")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert abs(metrics["ais/log_z"] - metrics["log_z"]) < 6 * metrics["ais/std_err"] + 1e-3
    assert {"log_z", "energy_data", "energy_samples", "seconds"} <= set(metrics)
    assert metrics["log_likelihood"] == pytest.approx(-metrics["energy_data"] - metrics["log_z"])
    assert (tmp_path / "out" / "density.png").exists()
    assert torch.load(tmp_path / "out" / "model.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
def test_contrastive_divergence_plots_its_bias(tmp_path):
    arguments = ("--num_chains", "400", "--sampler_steps", "6", "--output", "out")
    done = run(tmp_path, "contrastive_divergence.py", *arguments)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "bias.json").read_text())
    for chains in ("CD-k, from the data", "short runs, from uniform noise"):
        bias = results[chains]["exact"]
        assert len(bias) == 6
        assert bias == sorted(bias, reverse=True)
    assert (tmp_path / "out" / "cd_bias.png").stat().st_size > 10_000


@pytest.mark.slow
def test_statistical_physics_compares_estimates_with_exact_values(tmp_path):
    arguments = ("--num_chains", "2000", "--sampler_steps", "20", "--temperatures", "50", "--output", "out")
    done = run(tmp_path, "statistical_physics.py", *arguments)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "table.json").read_text())
    text = " ".join(row["what"] for row in rows)
    assert all(word in text for word in ("tanh", "sigmoid", "ABA", "log Z"))
    assert (tmp_path / "out" / "statistical_physics.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["mnist_rbm.py", "mnist_rbm_log_z.py"])
def test_rbm_recipes_on_mnist(recipe, tmp_path):
    data = Path(os.environ.get("EBM_DATA", RECIPES.parent.parent / "shared" / "data"))
    if not (data / "MNIST").is_dir():
        pytest.skip(f"MNIST is not in {data}; set EBM_DATA to the folder that contains it.")
    small = ("--data.root", str(data), "--size", "500", "--epochs", "1", "--hidden", "8", "--output", "out")
    extra = ("--temperatures", "20", "--num_chains", "20") if "log_z" in recipe else ()
    done = run(tmp_path, recipe, *small, *extra)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())


@pytest.mark.slow
def test_own_model_trains_on_a_folder_of_images_and_resumes(tmp_path):
    for i in range(40):
        folder = tmp_path / "images" / str(i % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(made_up(1, (8, 8, 3), seed=i)[0][0].numpy()).save(folder / f"{i}.png")
    for epochs in ("1", "2"):
        done = run(tmp_path, "own_model.py", "--data.root", "images", "--size", "8", "--epochs", epochs)
        assert done.returncode == 0, done.stderr
        assert ("Restored all states" in done.stderr) == (epochs == "2")
    assert (tmp_path / "runs" / "own_model" / "last.ckpt").exists()


def test_own_model_is_short():
    assert len((RECIPES / "own_model.py").read_text().splitlines()) < 60


OTHER_NAMES = {"steps", "chain_steps", "sweeps", "iterations", "chains", "ais_chains", "root", "images"}
SCRIPTS = sorted(path for path in RECIPES.rglob("*.py") if "auto_cli(" in path.read_text())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_recipes_use_one_name_for_one_thing(script):
    """Options are 'data.root', 'max_steps', 'sampler_steps' and 'num_chains', and not one of the other names."""
    tree = ast.parse(script.read_text())
    main = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    assert not {argument.arg for argument in main.args.args} & OTHER_NAMES


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", sorted(RECIPES.glob("*.py")), ids=lambda path: path.stem)
def test_the_help_of_a_recipe_is_short(script, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert not stopped.value.code
    lines = capsys.readouterr().out.splitlines()
    assert 3 < len(lines) < 120


@pytest.mark.slow
def test_few_labels_compares_three_methods(tmp_path):
    arguments = ("--seeds", "1", "--max_steps", "3", "--sampler_steps", "1", "--output", "out")
    done = run(tmp_path, "few_labels.py", *arguments)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(results["mean"]) == {"with p(x)", "without p(x)", "label spreading"}
    assert results["mean"]["label spreading"] > 0.8
    assert "test accuracy with 5 labels for each class" in done.stdout
