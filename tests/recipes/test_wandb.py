"""What a run logs to W&B, read from the records of an offline run."""

import json
from pathlib import Path

import pytest

from tests.recipes.conftest import AIS, run as run_recipe

pytest.importorskip("wandb")
from tests.wandb_records import Record, key, records, summary

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, list[Record]]:
    folder = tmp_path_factory.mktemp("wandb")
    few = ("--epochs", "2", "--cold_epochs", "1", "--width", "4", "--sampler_steps", "2", "--fresh_steps", "2")
    few += ("--output", "out", *AIS)
    done = run_recipe(folder, "digits.py", *few, "--logger", "wandb", "--log_checkpoint", "true")
    assert done.returncode == 0, done.stderr
    (offline,) = (folder / "out" / "wandb").glob("offline-run-*")
    assert [path.name for path in folder.iterdir()] == ["out"], "nothing is written to the working directory"
    return offline, records(next(offline.glob("*.wandb")))


def test_the_config_contains_every_hyperparameter(run):
    _, log = run
    updates = [item for r in log for item in r.config.update] + [item for r in log for item in r.run.config.update]
    config = {key(item): json.loads(item.value_json) for item in updates}
    assert config["sampler"]["class_path"].endswith("ReferenceJumps")
    assert config["sampler"]["init_args"]["kernel"]["init_args"].items() >= {"step_size": 0.4, "steps": 2}.items()
    assert config["chains"]["init_args"] == {"size": 256, "reinit_prob": 0.0, "initial": None}
    assert config["support"]["init_args"]["shape"] == [1, 8, 8]
    assert config["support"]["init_args"]["reference"]["class_path"].endswith("ClassGaussians")
    assert [part["class_path"].rpartition(".")[2] for part in config["coordinates"]["init_args"]["parts"]] == [
        "Quantiles",
        "NormalScores",
    ]
    assert config["implied_temperature"] == pytest.approx(1.0)
    assert config["generative_weight"] == 1.0
    assert config["classifier"]["init_args"]["width"] == 4


def test_metrics_have_their_names(run):
    _, log = run
    logged = {key(item) for r in log for item in r.history.item}
    assert logged >= {
        "train/loss", "train/loss_clf", "train/loss_gen", "train/energy_pos", "train/energy_neg",
        "test/accuracy", "test/nll", "test/ece", "ood/noise/auroc", "ood/transposed/auroc",
        "ais/log_z", "ais/std_err", "ais/ess", "ais/bits_per_dim", "test/accuracy_std_err",
        "val/accuracy", "val/nll", "chains/energy_gap", "chains/acceptance", "chains/step_size", "comparison._type",
    }  # fmt: skip


def test_one_key_has_one_kind(run):
    """A number and an image under one name would replace each other."""
    _, log = run
    items = [item for r in log for item in r.history.item]
    numbers = {key(item) for item in items if isinstance(json.loads(item.value_json), int | float)}
    others = {key(item).rpartition(".")[0] for item in items if key(item).endswith("._type")}
    assert others
    assert not numbers & others


def test_runs_are_named_grouped_and_tagged(run):
    _, log = run
    (described, *_) = [r.run for r in log if r.run.display_name]
    assert (described.display_name, described.run_group) == ("out-density", "out")
    assert list(described.tags) == ["digits", "density"]


def test_the_config_says_which_run_it_was(run):
    _, log = run
    updates = [item for r in log for item in [*r.config.update, *r.run.config.update]]
    config = {key(item): json.loads(item.value_json) for item in updates}
    assert config["data"]["class_path"] == "ebm_lightning.data.digits.Digits"
    expected = {"seed": 0, "batch_size": 128, "max_epochs": 2, "precision": "32-true"}
    assert {name: config[name] for name in expected} == expected
    assert not [name for name in config if name.startswith("_") and name != "_wandb"]


def test_the_summary_has_the_verdict_on_log_z(run):
    _, log = run
    verdict = summary(log)["ais/verdict"]
    assert "log Z is reliable" in verdict or "raise" in verdict


def test_figures_are_images(run):
    offline, log = run
    files = {key(item): json.loads(item.value_json) for r in log for item in r.history.item if "filenames" in key(item)}
    for name in ("samples/unconditional", "test/reliability", "ood/noise", "ais/path", "test/extremes"):
        (path,) = files[f"{name}.filenames"]
        assert (offline / "files" / path).stat().st_size > 500


def test_log_checkpoint_uploads_an_artifact(run):
    _, log = run
    artifacts = [r.request.log_artifact.artifact for r in log] + [r.artifact for r in log]
    models = [a for a in artifacts if a.type == "model"]
    assert models
    assert [entry.path for entry in models[-1].manifest.contents] == ["model.ckpt"]
