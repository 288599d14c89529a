"""recipes/evaluate.py from the command line."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ebm_lightning import ConditionalEBM, evaluate
from ebm_lightning.evaluation.checkpoints import load_model
from tests.evaluation.models import SMALL, arrays, small_classifier, small_jem
from tests.helpers import trainer
from tests.recipes.commands import run_recipe

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:log Z is unreliable", "ignore:.*log_every_n_steps")]
SHORT = [f"--{name}={json.dumps(list(v) if isinstance(v, tuple) else v)}".replace('"', "") for name, v in SMALL.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the checkpoints of two models, and their images."""
    folder = tmp_path_factory.mktemp("models")
    data = arrays(folder)
    for name, model in (("model", small_jem(data, seed=0)), ("baseline", small_classifier(data))):
        fit = trainer(folder, max_steps=2)
        torch.manual_seed(0)
        fit.fit(model, data)
        fit.save_checkpoint(folder / f"{name}.ckpt")
    return folder


def test_the_command_line_gives_the_numbers_of_the_function(folder, tmp_path):
    data = [
        "--data",
        "ImageArrays",
        "--data.path",
        str(folder / "images.npz"),
        "--data.val_size",
        "16",
        "--data.batch_size",
        "8",
    ]
    models = ["--checkpoint", str(folder / "model.ckpt"), "--baseline", str(folder / "baseline.ckpt")]
    options = ["--initial", "ClassGaussians", "--ood", "[images.npz]", "--ood_root", str(folder)]
    done = run_recipe(tmp_path, "evaluate.py", *models, *data, *options, *SHORT, "--progress_bar", "true")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs" / "eval-0"
    metrics = json.loads((out / "metrics.json").read_text())
    model, baseline = load_model(folder / "model.ckpt"), load_model(folder / "baseline.ckpt")
    options = SMALL | {"ood": ["images.npz"], "ood_root": folder, "initial": "reference"}
    expected = evaluate(model, arrays(folder), baseline, tmp_path / "here", **options)
    for name in set(expected) - {"seconds"}:
        if "samples/" not in name:
            assert metrics[name] == pytest.approx(expected[name], rel=1e-5), name
    line = next(line for line in done.stdout.splitlines() if line.split()[:2] == ["transposed", "↑"])
    assert len(line.split()) == 4
    assert "JEM   classifier" in done.stdout
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 100
    assert done.stdout.splitlines()[-1].endswith(f"pictures and logs are in {out.resolve()}")
    assert "annealing" in done.stderr, "a progress bar"
    report = (out / "report.html").read_text()
    assert "ClassGaussians fitted to training images" in report
    assert "model.ckpt and" in report


def test_other_networks_and_folders_with_results(folder, tmp_path):
    network = ["--classifier.path", "ebm_lightning.networks.MLP", "--classifier.arguments.in_features", "192"]
    network += ["--classifier.arguments.num_classes", "3", "--classifier.arguments.hidden", "[8]"]
    data = [
        "--data",
        "ImageArrays",
        "--data.path",
        str(folder / "images.npz"),
        "--data.val_size",
        "16",
        "--data.batch_size",
        "8",
    ]
    model = ["--checkpoint", str(folder / "baseline.ckpt"), "--output", "out"]
    few = [option for option in SHORT if "ais" not in option and "refine" not in option]
    few += ["--ais_temperatures", "0", "--refine_steps", "[]"]
    done = run_recipe(tmp_path, "evaluate.py", *model, *network, *data, *few)
    assert done.returncode == 0, done.stderr
    assert "No baseline was given" in (tmp_path / "out" / "report.html").read_text()
    again = run_recipe(tmp_path, "evaluate.py", *model, *data)
    assert again.returncode != 0
    assert "'output' should be a new or empty folder" in again.stderr


def test_a_network_that_is_missing_names_the_option_and_leaves_no_folder(folder, tmp_path):
    data = arrays(folder)
    fit = trainer(tmp_path, max_steps=1)
    fit.fit(ConditionalEBM(Elsewhere(), 3, data.support), data)
    fit.save_checkpoint(tmp_path / "model.ckpt")
    images = ["--data", "ImageArrays", "--data.path", str(folder / "images.npz")]
    (tmp_path / "here").mkdir()
    done = run_recipe(tmp_path / "here", "evaluate.py", "--checkpoint", "../model.ckpt", *images)
    assert done.returncode != 0
    assert "'--classifier' should be given" in done.stderr
    assert not list((tmp_path / "here").iterdir())


class Elsewhere(nn.Module):
    """A network that a checkpoint cannot rebuild."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 3)

    def forward(self, x):
        return self.layer(x.flatten(1))


def test_help_is_short_and_explains_every_option(tmp_path):
    done = run_recipe(tmp_path, "evaluate.py", "--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) < 120
    for option in ("--checkpoint", "--data.help", "--sampler_steps", "--ais_num_chains", "--initial", "--ood_root"):
        assert option in done.stdout
    assert "Steps of each fresh chain" in done.stdout
    assert "--title" not in done.stdout
