"""Two gloo ranks train one epoch, and each saves its final state. Run by test_ddp.py: FOLDER."""

import sys
from pathlib import Path

import lightning as L
import torch

from ebm_lightning import JEM, AISLogZ, Calibration, OODDetection, ReplayBuffer, SampleGrid
from ebm_lightning.networks import ConvNet
from ebm_lightning.supports import Box
from tests.helpers import batches, jem, trainer, weights

ESTIMATE = AISLogZ(1, temperatures=20, num_chains=137, chunk_size=11)  # 13 islands, so that ranks get 7 and 6


class Report(L.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch.save(
            {"x": pl_module.chains.x, "age": pl_module.chains.age, "weights": weights(pl_module)},
            self.folder / f"rank-{trainer.global_rank}.pt",
        )

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        torch.save(metrics, self.folder / f"metrics-{trainer.global_rank}.pt")


def ddp_module() -> JEM:
    net, box = ConvNet((1, 4, 4), 3, 4), Box(-1, 1, (1, 4, 4))
    return jem(net, support=box, chains=ReplayBuffer(21), seed=None, class_conditional_weight=1.0)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    L.seed_everything(42)  # the same seed on every rank: chains must differ nevertheless
    module = ddp_module()
    callbacks = [Report(folder), Calibration(), OODDetection(), SampleGrid(1), ESTIMATE]
    t = trainer(folder, devices=2, strategy="ddp", callbacks=callbacks)
    loader = batches(33, 8, (1, 4, 4))
    t.fit(module, loader, loader)
    t.test(module, loader, verbose=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
