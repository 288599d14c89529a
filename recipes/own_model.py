"""Your own network, images and loss term, as a joint energy model: ``python recipes/own_model.py --images DIR``.

DIR holds one folder of images for each class, as ``torchvision.datasets.ImageFolder`` reads them.
"""

from pathlib import Path

import lightning as L
import torch.nn.functional as F
from jsonargparse import auto_cli
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, random_split
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18

from ebm_lightning import JEM, SGLD, Box, Calibration, OODDetection, ReplayBuffer, SampleGrid
from ebm_lightning.data import resumable_loader


class Smoothed(JEM):
    """JEM with one term of its own: cross-entropy with smoothed labels."""

    def conditional_loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self(x), y, label_smoothing=0.1)


def main(images: Path, size: int = 32, epochs: int = 10, output: Path = Path("runs/own_model")) -> None:
    """Train on a folder of images; run again after an interruption, it goes on from its last checkpoint.

    Args:
        images: Folder with one folder of images for each class.
        size: Images are scaled and cropped to size x size.
        epochs: Passes over nine tenths of the images; the rest is for validation.
        output: Checkpoints, metrics and pictures.
    """
    L.seed_everything(0)
    scale, crop = transforms.Resize(size), transforms.CenterCrop(size)
    to_box = [transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]  # [-1, 1], the box below
    data = ImageFolder(images, transforms.Compose([scale, crop, *to_box]))
    train, val = random_split(data, [0.9, 0.1])
    classes, box = len(data.classes), Box(-1, 1, (3, size, size))
    model = Smoothed(resnet18(num_classes=classes), classes, box, SGLD.jem(), ReplayBuffer(1000), data_noise=0.03)
    saver = ModelCheckpoint(output, every_n_train_steps=100, save_last=True)
    measure = [Calibration(directory=output), OODDetection(directory=output), SampleGrid(1, directory=output)]
    trainer = L.Trainer(max_epochs=epochs, callbacks=[saver, *measure], logger=CSVLogger(output))
    trainer.fit(model, resumable_loader(train, min(64, len(train))), DataLoader(val, 64), ckpt_path="last")
    trainer.test(model, DataLoader(val, 64))


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
