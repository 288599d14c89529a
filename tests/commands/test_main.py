"""``ebm-lightning``: its commands, and presets that are found without a clone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ebm_lightning.__main__ import COMMANDS, main
from ebm_lightning.commands.train import with_presets
from ebm_lightning.models import shipped_models
from ebm_lightning.presets import FOLDER, preset_names, preset_path

ROOT = Path(__file__).parent.parent.parent


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "ebm_lightning", *arguments]
    return subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=300)


def test_commands_are_listed(capsys):
    for arguments in ([], ["--help"]):
        main(arguments)
        printed = capsys.readouterr().out
        assert all(f"\n  {name} " in printed for name in COMMANDS)
    assert set(COMMANDS) >= {"fit", "test", "evaluate", "sample", "log-z", "models"}


def test_an_unknown_command_lists_the_known_ones():
    with pytest.raises(SystemExit, match="'ebm-lightning train' is not a command"):
        main(["train"])


def test_models_and_presets_are_listed(capsys):
    main(["models"])
    printed = capsys.readouterr().out
    assert all(f"`{name}`" in printed for name in shipped_models())
    main(["presets"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == preset_names()


def without_reader(*call: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with an output that nothing reads."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, *call]
        streams = {"stdout": writer, "stderr": subprocess.PIPE, "text": True}
        return subprocess.run(command, env=os.environ | environment, **streams, timeout=300)
    finally:
        os.close(writer)


IN_A_COMMAND = (
    "from ebm_lightning.__main__ import ends_with_its_reader\nwith ends_with_its_reader():\n    print(1)\n    "
)
PRINTS = {
    "table": ("-m", "ebm_lightning", "presets"),
    "end of --help": ("-c", f"{IN_A_COMMAND}raise SystemExit"),
    "sample --help": pytest.param(("-m", "ebm_lightning", "sample", "--help"), marks=pytest.mark.slow),
}


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("call", PRINTS.values(), ids=PRINTS)
def test_a_command_ends_quietly_with_its_reader(call, unbuffered):
    """As in '| head'. Kills: no flush before the end, no flush at SystemExit, a check that relies on the buffer."""
    done = without_reader(*call, PYTHONUNBUFFERED=unbuffered)
    assert done.stderr == ""
    assert done.returncode in (0, 1)


def test_another_broken_pipe_is_an_error():
    """Kills: every broken pipe taken for that of the output, an error of a command hidden by that of its output."""
    call = [sys.executable, "-c", f"{IN_A_COMMAND}raise BrokenPipeError(5)"]
    assert subprocess.run(call, capture_output=True, text=True).stderr.endswith("BrokenPipeError: 5\n")
    assert "KeyError: 5" in without_reader("-c", f"{IN_A_COMMAND}raise KeyError(5)", PYTHONUNBUFFERED="").stderr


def test_a_preset_is_found_by_name_and_a_file_by_its_path(tmp_path, monkeypatch):
    file = str(FOLDER / "jem_mnist.yaml")
    assert with_presets(["fit", "--config", "jem_mnist", "--config=jem_mnist"]) == [
        "fit",
        "--config",
        file,
        f"--config={file}",
    ]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("seed_everything: 1")
    assert preset_path("mine.yaml") == "mine.yaml"
    with pytest.raises(ValueError, match=r"'--config' should be a file or a preset \(cdk_mnist, .*got 'jem_minst'"):
        preset_path("jem_minst")


@pytest.mark.slow
def test_a_model_is_trained_evaluated_and_sampled_without_a_clone(tmp_path):
    few = (
        "--trainer.max_steps",
        "3",
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.enable_model_summary",
        "false",
    )
    done = command(tmp_path, "fit", "--config", "density_table", *few)
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.strip().splitlines()
    assert "Training the JEM of MLP" in done.stdout
    folder = tmp_path / "runs" / "density_table"
    assert last.startswith(
        f"Checkpoints are in {(folder / 'checkpoints').resolve()}, figures and logs in {folder.resolve()}"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
    checkpoint = str(folder / "checkpoints" / "model.ckpt")
    done = command(tmp_path, "sample", "--checkpoint", checkpoint, "--n", "5", "--y", "1", "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "runs" / "samples-0" / "samples.npy").shape == (5, 30)
    assert (tmp_path / "runs" / "samples-0" / "samples.png").stat().st_size > 3000
    small = ("--samples", "20", "--sampler_steps", "1", "--attack_steps", "1", "--refine_steps", "[]")
    small += ("--ais_temperatures", "3", "--ais_num_chains", "20", "--progress_bar", "false", "--output", "page")
    done = command(tmp_path, "evaluate", "--checkpoint", checkpoint, "--data", "Table", *small)
    assert done.returncode == 0, done.stderr
    assert "test/accuracy" in json.loads((tmp_path / "page" / "metrics.json").read_text())


@pytest.mark.slow
def test_a_preset_trains_on_two_processes(tmp_path):
    """Kills: weight averaging that copies the trainer with the module, lines that every process prints."""
    few = ("--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false", "--model.classifier.width", "4")
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu")
    done = command(tmp_path, "fit", "--config", "density_digits", *two, *few)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Training the JEM of ThresholdConvNet") == 1
    assert done.stdout.count("Checkpoints are in") == 1
    (path,) = tmp_path.rglob("*.ckpt")
    assert len(torch.load(path, weights_only=True)["ranks"]) == 2
