"""Train any module on any data: ``python recipes/train.py fit --config recipes/configs/jem_cifar10.yaml``.

This is a LightningCLI. The arguments of every constructor are options (``--model.sampler.steps 40``) and YAML keys;
``fit --print_config`` prints them all. ``validate``, ``test`` and ``predict`` accept ``--ckpt_path``. Checkpoints and
the resolved config are written to ``--trainer.default_root_dir``, and ``--ckpt_path last`` resumes from the last
checkpoint there.
"""

import os
import warnings

import lightning as L
from lightning.pytorch.cli import LightningCLI

import ebm_lightning.callbacks
import ebm_lightning.data  # noqa: F401  (and '--data MNIST')
from ebm_lightning import ConditionalEBM


def main(arguments: list[str] | None = None) -> LightningCLI:
    """Run the command line, or ``arguments`` instead of it."""
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec).*")
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # caused by Lightning
    return LightningCLI(
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
