"""Train any module on any data: ``python recipes/train.py fit --config recipes/configs/jem_cifar10.yaml``.

This is a LightningCLI. The arguments of every constructor are options (``--model.sampler.steps 40``) and YAML keys;
``fit --print_config`` prints them all. Checkpoints and the resolved config are written to
``--trainer.default_root_dir``, and ``fit --ckpt_path last`` resumes from the last checkpoint there. Every command takes
``--ckpt_path FILE``, also of a run in Python; ``--config`` then describes the same network.
"""

import os
import warnings

import lightning as L
from lightning.pytorch.cli import LightningCLI

import ebm_lightning.data  # noqa: F401  (so that '--data MNIST' is found)
from ebm_lightning import ConditionalEBM
from ebm_lightning.callbacks import *  # noqa: F403  (and '--trainer.callbacks SampleGrid')


class TrainCLI(LightningCLI):
    """A LightningCLI in which ``--ckpt_path`` names weights, and ``--config`` and options alone describe the model."""

    def _parse_ckpt_path(self) -> None:
        """Lightning's would put hyperparameters of the checkpoint above those of the command line."""


def main(arguments: list[str] | None = None) -> LightningCLI:
    """Run the command line, or ``arguments`` instead of it."""
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
        args=arguments,
    )


if __name__ == "__main__":
    main()
