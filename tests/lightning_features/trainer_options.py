"""Options of the trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from tests.helpers import batches, jem, trainer, weights
from tests.lightning_features.registry import feature

GROUP = "Options of the trainer"


def steps(folder: Path, **options: Any) -> int:
    """Optimizer steps of a run with ``options`` on three batches; it has to change the weights, which stay finite."""
    module = jem()
    before = weights(module)
    run = trainer(folder, **options)
    run.fit(module, batches(), batches())
    assert torch.isfinite(weights(module)).all()
    assert not torch.equal(weights(module), before)
    return run.global_step


@feature(GROUP, "`max_epochs`, `min_epochs`")
def max_epochs(folder: Path) -> None:
    assert steps(folder, max_epochs=2, min_epochs=1) == 6


@feature(GROUP, "`max_steps`, `min_steps`")
def max_steps(folder: Path) -> None:
    assert steps(folder, max_steps=2, min_steps=1, max_epochs=-1) == 2


@feature(GROUP, "`max_time`")
def max_time(folder: Path) -> None:
    assert steps(folder, max_time="00:00:01:00") == 3


@feature(GROUP, "`fast_dev_run`")
def fast_dev_run(folder: Path) -> None:
    assert steps(folder, fast_dev_run=True) == 1


@feature(GROUP, "`overfit_batches`")
def overfit_batches(folder: Path) -> None:
    assert steps(folder, overfit_batches=1) == 1


@feature(
    GROUP, "`limit_train_batches`, `limit_val_batches`", "Fits before training read all the data that have an end."
)
def limits(folder: Path) -> None:
    assert steps(folder, limit_train_batches=2, limit_val_batches=0) == 2


@feature(GROUP, "`val_check_interval`, `check_val_every_n_epoch=None`")
def validation_by_step(folder: Path) -> None:
    assert steps(folder, val_check_interval=2, check_val_every_n_epoch=None) == 3


@feature(GROUP, "`num_sanity_val_steps`", "The chains are set up before it.")
def sanity_check(folder: Path) -> None:
    assert steps(folder, num_sanity_val_steps=2) == 3


@feature(GROUP, "`accumulate_grad_batches`", "The sampler runs for every micro-batch.")
def accumulation(folder: Path) -> None:
    assert steps(folder, accumulate_grad_batches=3) == 1


@feature(GROUP, "`gradient_clip_val`, by norm or by value")
def clipping(folder: Path) -> None:
    assert steps(folder, gradient_clip_val=0.1) == 3
    assert steps(folder, gradient_clip_val=0.1, gradient_clip_algorithm="value") == 3


@feature(GROUP, "`detect_anomaly`")
def anomalies(folder: Path) -> None:
    assert steps(folder, detect_anomaly=True) == 3


@feature(GROUP, "`deterministic`")
def deterministic(folder: Path) -> None:
    try:
        assert steps(folder, deterministic=True) == 3
    finally:
        torch.use_deterministic_algorithms(False)


@feature(GROUP, "`inference_mode=False`")
def without_inference_mode(folder: Path) -> None:
    assert steps(folder, inference_mode=False) == 3


@feature(GROUP, "`barebones`")
def barebones(folder: Path) -> None:
    names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    assert steps(folder, barebones=True, log_every_n_steps=None, **dict.fromkeys(names)) == 3


@feature(GROUP, '`profiler="simple"`')
def profiler(folder: Path) -> None:
    assert steps(folder, profiler="simple") == 3


@feature(
    GROUP,
    "`logger`: `CSVLogger`, `TensorBoardLogger`, `WandbLogger`",
    "Derived values such as the implied temperature are logged.",
)
def loggers(folder: Path) -> None:
    assert steps(folder, logger=[CSVLogger(folder), TensorBoardLogger(folder)]) == 3
    assert "implied_temperature" in next(folder.rglob("hparams.yaml")).read_text()


@feature(GROUP, "`reload_dataloaders_every_n_epochs`")
def reloading(folder: Path) -> None:
    assert steps(folder, reload_dataloaders_every_n_epochs=1, max_epochs=2) == 6


PRECISION = "Precision and devices"


@feature(PRECISION, "`32-true`, `64-true`")
def full_precision(folder: Path) -> None:
    assert steps(folder, precision="64-true") == 3


@feature(PRECISION, "`bf16-mixed`", "Chains, the last linear layer and energies stay in float32.")
def mixed_bfloat16(folder: Path) -> None:
    assert steps(folder, precision="bf16-mixed") == 3


@feature(PRECISION, "`16-mixed`", "`SADAJEM` refuses it.")
def mixed_float16(folder: Path) -> None:
    assert steps(folder, precision="16-mixed") == 3


@feature(
    PRECISION,
    "`bf16-true`, `16-true`",
    "A classifier without chains may use them.",
    "'precision' should be bf16-mixed or 32-true",
)
def half_precision(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="'precision' should be bf16-mixed or 32-true"):
        steps(folder, precision="bf16-true")
    steps(folder, precision="16-true")


@feature(
    PRECISION,
    '`strategy="ddp"`, `"ddp_spawn"`, `"ddp_fork"`, `"ddp_notebook"`',
    "Each rank has its own chains. The chains of all come back to the process that called `fit`.",
)
def processes(folder: Path) -> None:
    module = jem()
    trainer(folder, strategy="ddp_fork", devices=2).fit(module, batches())
    assert len(module.chains.x) == 60


@feature(
    PRECISION,
    "`FSDPStrategy`, `DeepSpeedStrategy`, `ModelParallelStrategy`",
    "",
    "'strategy' should keep all weights on each device",
)
def sharding(folder: Path) -> None:
    from lightning.pytorch.strategies import SingleDeviceStrategy

    class FSDPStrategy(SingleDeviceStrategy):  # Lightning's needs several accelerators
        pass

    steps(folder, strategy=FSDPStrategy(), accelerator="auto")
