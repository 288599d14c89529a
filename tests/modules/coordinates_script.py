"""Two gloo ranks fit coordinates, with other seeds and data each. Run by test_fit_coordinates.py: FOLDER."""

import os
import sys
from pathlib import Path

import lightning as L
import torch
import zuko
from torch import Tensor

from ebm_lightning.coordinates import Compose, Flow, NormalScores, Quantiles, Whitening
from tests.helpers import jem, trainer, weights
from tests.modules.coordinates_models import BOX, Data, net

RANK = int(os.environ.get("LOCAL_RANK", 0))


class OwnNoise(Data):
    """Adds noise from a generator that differs between ranks, as a data set of a user may."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(RANK)

    def collate(self, items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        x, y = super().collate(items)
        return BOX.reflect(x + 0.05 * torch.randn(x.shape, generator=self.generator)), y


class Report(L.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        report = {"coordinates": pl_module.coordinates.state_dict(), "weights": weights(pl_module.classifier)}
        report["x"] = pl_module.chains.x
        torch.save(report, self.folder / f"rank-{trainer.global_rank}.pt")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    L.seed_everything(RANK)
    flow = Flow(zuko.flows.NSF(2, transforms=1, hidden_features=(8,)), (2,), epochs=1)
    parts = Compose([Quantiles(BOX, 8), NormalScores((2,)), Whitening((2,)), flow])
    module = jem(net(), support=None, coordinates=parts, seed=None)
    trainer(folder, devices=2, strategy="ddp", callbacks=[Report(folder)]).fit(module, OwnNoise())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
