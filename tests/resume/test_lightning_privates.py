"""Every private name of Lightning that the package relies on exists in the installed version."""

import ast
import inspect
from importlib.metadata import version
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch import cli
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.strategies.launchers import multiprocessing

import ebm_lightning
from ebm_lightning import ConditionalEBM
from ebm_lightning.data import resumable_loader
from ebm_lightning.networks import MLP
from ebm_lightning.resume import loop_counters
from ebm_lightning.resume.lightning_internals import averaged_modules
from tests.helpers import batches, trainer

PACKAGE = Path(ebm_lightning.__file__).parent
ATTRIBUTES = {
    "fit_loop._data_source": "the training data for fits",
    "fit_loop._data_source.dataloader": "the training data for fits",
    "fit_loop._data_source.instance": "the data that loggers show",
    "validate_loop._data_source": "the data that loggers show",
    "test_loop._data_source": "the data that loggers show",
    "fit_loop._data_fetcher": "whether an epoch has started",
    "fit_loop.epoch_loop._should_check_val_fx": "whether a validation is due",
    "fit_loop.epoch_progress.current.processed": "the epoch of a resumed data order",
    "callbacks": "whether GracefulInterrupt is present",
}
PROGRESS = {"ready", "started", "processed", "completed"}
CHECKPOINT = {  # in checkpoint["loops"]["fit_loop"]
    loop_counters.BATCHES: {"total": PROGRESS, "current": PROGRESS, "is_last_batch": None},
    loop_counters.VAL_BATCHES: {"total": PROGRESS, "current": PROGRESS},
    loop_counters.EPOCHS: {"total": PROGRESS, "current": PROGRESS},
    loop_counters.EPOCH_LOOP: {loop_counters.STEPPED: None},
    "state_dict": {"combined_loader": None},
}


def missing(name: str, purpose: str) -> str:
    return f"Lightning {L.__version__} does not have '{name}', which this package needs for {purpose}."


@pytest.mark.parametrize(("path", "purpose"), ATTRIBUTES.items(), ids=ATTRIBUTES)
def test_the_trainer_has(path, purpose, tmp_path):
    value = trainer(tmp_path)
    for name in path.split("."):
        assert hasattr(value, name), missing(f"trainer.{path}", purpose)
        value = getattr(value, name)


def test_weight_averaging_has_a_copy_of_the_module(tmp_path):
    averaging = EMAWeightAveraging()
    assert hasattr(averaging, "_average_model"), missing("WeightAveraging._average_model", "the fit of coordinates")
    net = MLP(4, 3)
    runner = trainer(tmp_path, callbacks=[averaging])
    averaging.setup(runner, ConditionalEBM(net, 3), "fit")
    assert isinstance(averaged_modules(runner)[0], ConditionalEBM)


def test_the_check_for_a_validation_takes_the_data_fetcher(tmp_path):
    check = trainer(tmp_path).fit_loop.epoch_loop._should_check_val_fx
    assert list(inspect.signature(check).parameters) == ["data_fetcher"], missing(
        "_should_check_val_fx(data_fetcher)", "loop counters"
    )


def test_a_checkpoint_has_the_counters_of_the_loops(tmp_path):
    saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    t = trainer(tmp_path, callbacks=[saver], enable_checkpointing=True)
    loader = resumable_loader(batches().dataset, 8)
    t.fit(ConditionalEBM(MLP(4, 3, (8,)), 3), loader, batches())
    loops = torch.load(tmp_path / "step=2.ckpt", weights_only=True)["loops"]["fit_loop"]
    for name, keys in CHECKPOINT.items():
        for key, counters in keys.items():
            path = f"checkpoint['loops']['fit_loop']['{name}']['{key}']"
            assert key in loops.get(name, {}), missing(path, "loop counters")
            assert counters is None or counters <= loops[name][key].keys(), missing(path, "loop counters")
    (state,) = loops["state_dict"]["combined_loader"]
    assert "_iterator_finished" in state, f"torchdata {version('torchdata')} does not have '_iterator_finished'."


def test_the_cli_marks_hyperparameters():
    assert '"_instantiator"' in inspect.getsource(cli), missing("hparams['_instantiator']", "hyperparameters")


def test_the_cli_reads_arguments_of_checkpoints_in_one_method():
    assert hasattr(cli.LightningCLI, "_parse_ckpt_path"), missing("LightningCLI._parse_ckpt_path", "commands/train.py")


def test_processes_of_spawn_and_fork_take_the_state_of_the_module():
    source = inspect.getsource(multiprocessing)
    assert "trainer.lightning_module.state_dict()" in source, missing("the state of a process", "its chains")
    assert "trainer.lightning_module.load_state_dict(" in source, missing("the state of a process", "its chains")


def test_private_attributes_are_used_in_one_file_only():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
                owner = ast.unparse(node.value)
                if any(word in owner for word in ("trainer", "strategy", "loop")):
                    found.setdefault(path.name, set()).add(f"{owner}.{node.attr}".removeprefix("trainer."))
    private = {name for name in ATTRIBUTES if name.rpartition(".")[2].startswith("_")}
    assert found == {"lightning_internals.py": private}
