"""Two gloo ranks fit the reference density of a model and adapt its step size. Run by test_reference.py: FOLDER."""

import os
import sys
from pathlib import Path

import lightning as L
import torch

from ebm_lightning import ClassGaussians
from ebm_lightning.networks import SumLogits
from tests.helpers import trainer
from tests.modules.coordinates_models import Data, net
from tests.modules.test_reference import model

RANK = int(os.environ.get("LOCAL_RANK", 0))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    L.seed_everything(RANK)
    module = model(ClassGaussians(1e-2), SumLogits([ClassGaussians(1e-2), net()]))
    trainer(folder, devices=2, strategy="ddp").fit(module, Data())
    torch.save(module.state_dict(), folder / f"rank-{RANK}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
