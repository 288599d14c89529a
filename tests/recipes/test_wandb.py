"""What a run logs to W&B, read from the records of an offline run."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from tests.recipes.conftest import AIS, run as run_recipe

pytestmark = pytest.mark.slow
BLOCK, HEADER = 32_768, 7


def records(path: Path) -> Iterator[Record]:
    """The records in a run's log: after a 7-byte header, LevelDB's framing (crc, length, kind; blocks of 32 KiB)."""
    data, at, whole = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        whole += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


def key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, list[Record]]:
    folder = tmp_path_factory.mktemp("wandb")
    few = ("--epochs", "2", "--cold_epochs", "1", "--width", "4", "--sampler_steps", "2", "--fresh_steps", "2")
    few += ("--output", "out", *AIS)
    done = run_recipe(folder, "digits.py", *few, "--logger", "wandb", "--log_checkpoint", "true")
    assert done.returncode == 0, done.stderr
    (offline,) = (folder / "out" / "wandb").glob("offline-run-*")
    return offline, list(records(next(offline.glob("*.wandb"))))


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
        "ais/log_z", "ais/std_err", "ais/ess", "ais/bits_per_dim",
    }  # fmt: skip


def test_figures_are_images(run):
    offline, log = run
    files = {key(item): json.loads(item.value_json) for r in log for item in r.history.item if "filenames" in key(item)}
    for name in ("samples/unconditional", "test/reliability", "ood/noise", "ais/ess"):
        (path,) = files[f"{name}.filenames"]
        assert (offline / "files" / path).stat().st_size > 500


def test_log_checkpoint_uploads_an_artifact(run):
    _, log = run
    artifacts = [r.request.log_artifact.artifact for r in log] + [r.artifact for r in log]
    models = [a for a in artifacts if a.type == "model"]
    assert models
    assert [entry.path for entry in models[-1].manifest.contents] == ["model.ckpt"]
