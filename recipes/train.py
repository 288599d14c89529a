"""Train any module on any data: ``python recipes/train.py fit --config recipes/configs/jem_cifar10.yaml``.

A LightningCLI: every constructor's arguments are options (``--model.sampler.steps 40``) and keys of the YAML, which
``fit --print_config`` writes out. ``validate``, ``test`` and ``predict`` take ``--ckpt_path``. Checkpoints and the
resolved config go to ``--trainer.default_root_dir``; ``--ckpt_path last`` goes on from the last checkpoint there.
"""

import os
import warnings

import lightning as L
from lightning.pytorch.cli import LightningCLI

import ebm_lightning.data  # noqa: F401  (names of data modules)
from ebm_lightning import ConditionalEBM


def main(arguments: list[str] | None = None) -> LightningCLI:
    """Run the command line, or ``arguments`` in its place."""
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec).*")
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of Lightning's calls, not of ours
    return LightningCLI(
        ConditionalEBM,
        L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},  # a run that goes on writes its config again
        args=arguments,
    )


if __name__ == "__main__":
    main()
