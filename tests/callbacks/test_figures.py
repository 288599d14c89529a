"""Where figures and warnings go."""

import io
import re
import sys

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tqdm import tqdm

from ebm_lightning import Calibration
from ebm_lightning.callbacks.figures import run_folder
from ebm_lightning.callbacks.warn import warn
from tests.callbacks.helpers import image_jem
from tests.helpers import batches, trainer


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_figures_are_next_to_the_logs(tmp_path, kind):
    logger = kind(tmp_path / "logs", "name", "v")
    run = trainer(tmp_path, logger=logger, callbacks=[Calibration()])
    run.test(image_jem(), batches(shape=(1, 8, 8)), verbose=False)
    assert [path.parent for path in tmp_path.rglob("*.png")] == [tmp_path / "logs" / "name" / "v"]


def test_without_a_logger_they_are_in_the_root_of_the_trainer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_folder(trainer(tmp_path / "root")) == tmp_path / "root"
    assert run_folder(trainer(tmp_path)) == tmp_path / "figures", "not in the working directory"


def test_with_wandb_they_are_in_the_folder_of_the_run(tmp_path, monkeypatch):
    """Where ModelCheckpoint puts checkpoints."""
    pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.chdir(tmp_path)
    logger = WandbLogger("a", tmp_path / "runs", version="id7", project="project", offline=True)
    assert run_folder(trainer(tmp_path, logger=logger)) == tmp_path / "runs" / "project" / "id7"


@pytest.mark.filterwarnings("always")
def test_a_warning_has_its_own_line(monkeypatch):
    """Kills: a warning behind the progress bar."""
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("warnings.showwarning", lambda message, *_: terminal.write(f"WARNING: {message}\n"))
    with tqdm(range(9), "training", file=terminal) as bar:
        bar.update(3)
        warn("log Z of the JEM: reason, remedy")
    before, after = terminal.getvalue().split("WARNING: log Z of the JEM: reason, remedy\n")
    assert re.fullmatch(r"[ ]*", before.split("\r")[-1]), "the bar is removed"
    assert "training" in after, "and drawn again"
