"""``ebm-lightning fit|validate|test|predict``: a LightningCLI, and the presets that come with the package.

The arguments of every constructor are options (``--model.sampler.steps 40``) and YAML keys; ``fit --print_config``
prints them all. Checkpoints and the resolved config are written to ``--trainer.default_root_dir``, and ``fit
--ckpt_path last`` resumes from the last checkpoint there. Every command takes ``--ckpt_path FILE``, also of a run in
Python; ``--config`` then describes the same network.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities import rank_zero_only

import ebm_lightning.data  # noqa: F401  (so that '--data MNIST' is found)
from ebm_lightning.callbacks import *  # noqa: F403  (and '--trainer.callbacks SampleGrid')
from ebm_lightning.callbacks.figures import run_folder
from ebm_lightning.evaluation.names import model_name
from ebm_lightning.modules import ConditionalEBM
from ebm_lightning.presets import preset_path


class TrainCLI(LightningCLI):
    """A LightningCLI in which ``--ckpt_path`` names weights, and only ``--config`` and options describe the model.

    It says which model trains, and at the end where everything is.
    """

    def _parse_ckpt_path(self) -> None:
        """Lightning's would put hyperparameters of the checkpoint above those of the command line."""

    @rank_zero_only
    def before_fit(self) -> None:
        print(f"Training the {model_name(self.model)} of {type(self.model.classifier).__name__}", flush=True)

    @rank_zero_only
    def after_fit(self) -> None:
        folder = run_folder(self.trainer).resolve()
        savers = [c for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.dirpath]
        checkpoints = sorted({str(Path(c.dirpath or "").resolve()) for c in savers})
        where = (
            f"Checkpoints are in {' and '.join(checkpoints)}, figures and logs" if checkpoints else "Figures and logs"
        )
        print(f"{where} in {folder}")


def main(arguments: Sequence[str] | None = None) -> LightningCLI:
    """Run the command line, or ``arguments`` instead of it. ``--config`` takes files and names of presets."""
    if arguments is None:
        sys.argv[1:] = with_presets(sys.argv[1:])  # in place, because other ranks are started with the same arguments
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec).*")
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # caused by Lightning
    return TrainCLI(
        ConditionalEBM,
        L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},  # a resumed run writes its config again
        args=None if arguments is None else with_presets(arguments),
    )


def with_presets(arguments: Sequence[str]) -> list[str]:
    """The arguments, in which ``--config NAME`` of a preset is the path of its file."""
    found = list(arguments)
    for i, argument in enumerate(found):
        if argument.startswith("--config="):
            found[i] = f"--config={preset_path(argument.removeprefix('--config='))}"
        elif argument == "--config" and i + 1 < len(found):
            found[i + 1] = preset_path(found[i + 1])
    return found
