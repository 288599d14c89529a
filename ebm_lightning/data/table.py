"""Tables that scikit-learn bundles: real rows without a download."""

from abc import abstractmethod
from typing import Literal

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ebm_lightning._lazy import optional_packages
from ebm_lightning.data.resumable_loader import resumable_loader
from ebm_lightning.supports import Euclidean

TableName = Literal["cancer", "wine", "iris"]
CLASSES: dict[TableName, int] = {"cancer": 2, "wine": 3, "iris": 3}
COLUMNS: dict[TableName, int] = {"cancer": 30, "wine": 13, "iris": 4}


class Rows(L.LightningDataModule):
    """Rows of numbers with classes, whose columns are standardized by the training rows. Subclasses read them.

    70 % of the rows are for training, 10 % for validation and 20 % for test.

    Arguments:
        columns: Number of columns.
        num_classes: K.
        batch_size: Rows in a batch.
        split_seed: Seed of the split.
    """

    def __init__(self, columns: int, num_classes: int, batch_size: int, split_seed: int) -> None:
        super().__init__()
        self.columns = columns
        self.num_classes = num_classes
        self.support = Euclidean((columns,))
        self.batch_size = batch_size
        self.split_seed = split_seed

    @abstractmethod
    def read(self) -> tuple[Tensor, Tensor]:
        """All rows, shape (N, columns), and their classes, shape (N,)."""

    def setup(self, stage: str | None = None) -> None:
        x, y = self.read()
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.split_seed))
        parts = order.tensor_split([int(0.7 * len(x)), int(0.8 * len(x))])
        x = (x - x[parts[0]].mean(0)) / x[parts[0]].std(0)
        self.train, self.val, self.test = (TensorDataset(x[part], y[part]) for part in parts)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return resumable_loader(self.train, min(self.batch_size, len(self.train)), self.trainer)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        # A separate generator: without one, starting the loader would advance the global random state.
        return DataLoader(self.val, batch_size=256, generator=torch.Generator())

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.test, batch_size=256, generator=torch.Generator())

    predict_dataloader = test_dataloader


class Table(Rows):
    """A table of scikit-learn, whose columns are standardized by the training rows. Needs scikit-learn.

    70 % of the rows are for training, 10 % for validation and 20 % for test.

    Arguments:
        table: ``"cancer"`` (569 rows, 30 columns, 2 classes), ``"wine"`` (178, 13, 3) or ``"iris"`` (150, 4, 3).
        batch_size: Rows in a batch.
        split_seed: Seed of the split.

    Raises:
        ValueError: ``table`` is unknown.
    """

    def __init__(self, table: TableName = "cancer", batch_size: int = 100, split_seed: int = 0) -> None:
        if table not in CLASSES:
            raise ValueError(f"'table' should be one of {', '.join(CLASSES)}, got {table!r}.")
        super().__init__(COLUMNS[table], CLASSES[table], batch_size, split_seed)
        self.table = table

    def read(self) -> tuple[Tensor, Tensor]:
        with optional_packages("Table"):
            from sklearn.datasets import load_breast_cancer, load_iris, load_wine

        readers = {"cancer": load_breast_cancer, "wine": load_wine, "iris": load_iris}
        columns, classes = readers[self.table](return_X_y=True)
        return torch.as_tensor(columns).float(), torch.as_tensor(classes).long()
