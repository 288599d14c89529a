"""Train your own network and loss term as a joint energy model: ``python recipes/own_model.py --data.root DIR``.

DIR contains one folder of images per class, the layout of ``torchvision.datasets.ImageFolder``.
"""

from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch.nn.functional as F
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, random_split
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

from ebm_lightning import JEM, SGLD, Box, Calibration, OODDetection, ReplayBuffer, SampleGrid
from ebm_lightning.data import resumable_loader


class Smoothed(JEM):
    """JEM with one term overridden: cross-entropy with smoothed labels."""

    def conditional_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, label_smoothing=0.1)


@dataclass
class Images:
    root: Path


def main(data: Images, size: int = 32, epochs: int = 10, output: Path = Path("runs/own_model")) -> None:
    """Train on a folder of images. After an interruption, the same command resumes from the last checkpoint.

    Args:
        data: Images to train on. The root folder contains one folder of images per class.
        size: Images are resized and cropped to size x size.
        epochs: Passes over 90 % of the images; the rest is for validation and test.
        output: Folder for checkpoints, metrics and figures.
    """
    L.seed_everything(0)
    to_box = [ToTensor(), Normalize(0.5, 0.5)]  # to [-1, 1], the box below
    images = ImageFolder(data.root, Compose([Resize(size), CenterCrop(size), *to_box]))
    train, val = random_split(images, [0.9, 0.1])
    classes, box = len(images.classes), Box(-1, 1, (3, size, size))
    model = Smoothed(resnet18(num_classes=classes), classes, box, SGLD.jem(), ReplayBuffer(1000), data_noise=0.03)
    saver = ModelCheckpoint(output, every_n_train_steps=100, save_last=True)
    metrics = [Calibration(directory=output), OODDetection(directory=output), SampleGrid(1, directory=output)]
    trainer = L.Trainer(max_epochs=epochs, callbacks=[saver, *metrics], logger=L.pytorch.loggers.CSVLogger(output))
    trainer.fit(model, resumable_loader(train, min(64, len(train))), DataLoader(val, 64), ckpt_path="last")
    trainer.test(model, DataLoader(val, 64))
    print(f"Checkpoints, pictures and logs are in {output.resolve()}")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
