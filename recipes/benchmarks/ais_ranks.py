"""Wall time of one ``AISLogZ`` estimate on a number of processes. ``ais.py`` runs this script for its part "ranks"."""

import math
import tempfile

import lightning as L
import torch
from common import timed
from jsonargparse import auto_cli
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning import AISLogZ, Box, ConditionalEBM, LogZ
from ebm_lightning.networks import ConvNet
from ebm_lightning.rng import make_generator


class TimedAISLogZ(AISLogZ):
    """Records the wall time from when all ranks are ready to when all have the estimate."""

    seconds = math.nan

    def estimate(self, trainer: L.Trainer, module: ConditionalEBM) -> LogZ:
        temperatures, self.temperatures = self.temperatures, 2
        super().estimate(trainer, module)  # warm-up
        self.temperatures = temperatures
        trainer.strategy.barrier()
        duration, result = timed(lambda: super(TimedAISLogZ, self).estimate(trainer, module))
        self.seconds = duration.wall
        return result


def main(processes: int = 1, num_chains: int = 1000, temperatures: int = 60) -> None:
    """Print the seconds of one estimate for the network of recipes/digits.py, with one thread per process.

    Args:
        processes: Number of processes.
        num_chains: Chains per process.
        temperatures: Annealing steps.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    box = Box(-1, 1, (1, 8, 8))
    images = TensorDataset(box.sample(8, generator=make_generator(0, "images")), torch.arange(8))
    with tempfile.TemporaryDirectory() as folder:
        callback = TimedAISLogZ(
            temperatures=temperatures,
            num_chains=processes * num_chains,
            chunk_size=math.ceil(num_chains / 10),
            directory=folder,
        )
        trainer = L.Trainer(
            accelerator="cpu",
            devices=processes,
            strategy="ddp" if processes > 1 else "auto",
            logger=False,
            callbacks=[callback],
            enable_progress_bar=False,
            default_root_dir=folder,
        )
        module = ConditionalEBM(ConvNet((1, 8, 8), 10, 24), 10, box)
        trainer.test(module, DataLoader(images, 4), verbose=False)
        if trainer.is_global_zero:
            print(callback.seconds)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
