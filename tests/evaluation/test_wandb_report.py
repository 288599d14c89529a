"""What an evaluation logs to W&B, read from the records of its offline runs."""

import json
from pathlib import Path

import pytest

from ebm_lightning import evaluate
from ebm_lightning.evaluation.loggers import run_logger
from tests.evaluation.models import SMALL, arrays, small_classifier, small_jem

pytest.importorskip("wandb")
from tests.wandb_records import Record, key, records, summary

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, tuple[Path, list[Record]]]:
    """The folder and the records of each run, by its name."""
    folder = tmp_path_factory.mktemp("wandb")
    few = SMALL | {"ais_temperatures": 0, "refine_steps": (), "linf": (), "l2": (), "noise": ()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.chdir(folder)
        data = arrays(folder)
        evaluate(small_jem(data), data, small_classifier(data), "out", logger="wandb", **few)
    assert {path.name for path in folder.iterdir()} == {"images.npz", "out"}
    logs = [(path.parent, records(path)) for path in folder.glob("out/*/wandb/offline-run-*/*.wandb")]
    return {next(r.run.display_name for r in log if r.run.display_name): (path, log) for path, log in logs}


def test_the_folder_of_a_run_is_absolute(tmp_path, monkeypatch):
    """A W&B service of another process, which WANDB_SERVICE names, has a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    assert run_logger("wandb", Path("out"), "name").save_dir == str(tmp_path / "out")


def test_the_model_and_its_classifier_are_one_group(runs):
    assert set(runs) == {"out-JEM", "out-classifier"}
    for name, (_, log) in runs.items():
        described = next(r.run for r in log if r.run.display_name)
        assert described.run_group == "out"
        assert list(described.tags)[:2] == ["evaluation", name.removeprefix("out-")]


def test_the_run_of_the_model_has_the_comparison_the_verdict_and_the_page(runs):
    path, log = runs["out-JEM"]
    media = path / "files" / "media"
    (found,) = (media / "table").glob("comparison*.json")
    table = json.loads(found.read_text())
    assert table["columns"] == ["metric", "JEM", "classifier"]
    assert any(row[0] == "test/accuracy" for row in table["data"])
    assert "Verdict" in next((media / "html").glob("report*.html")).read_text()
    assert summary(log)["verdict/Accuracy"].split(".")[0] in ("better", "worse", "the same within error")
    artifacts = [r.request.log_artifact.artifact for r in log] + [r.artifact for r in log]
    assert ["report.html"] in [[entry.path for entry in a.manifest.contents] for a in artifacts if a.type == "report"]


def test_the_config_names_the_data(runs):
    for _, log in runs.values():
        updates = [item for r in log for item in [*r.config.update, *r.run.config.update]]
        config = {key(item): json.loads(item.value_json) for item in updates}
        assert config["data"]["class_path"].endswith("ImageArrays")
        assert config["batch_size"] == 8
