"""Loading a trained model by its name, or any checkpoint by its path."""

import hashlib
from pathlib import Path

from torch import nn

from ebm_lightning.evaluation.checkpoints import load_model
from ebm_lightning.models.index import FOLDER, Shipped, shipped_models
from ebm_lightning.modules import ConditionalEBM


def load(
    name_or_path: str | Path, folder: str | Path | None = None, *, classifier: nn.Module | None = None
) -> ConditionalEBM:
    """A trained model that comes with the package, or the model of a checkpoint; on the CPU and in eval mode.

    ``ebm-lightning models`` lists the names. Their files are checked against the sha256 of the index. Nothing is
    downloaded, and a checkpoint cannot run code (``weights_only=True``).

    Arguments:
        name_or_path: A name such as ``"digits"``, or the path of a checkpoint. A name comes first: for a file that is
            called like one write ``"./digits"``.
        folder: Folder with the file of a name, such as one downloaded from the releases; by default that of the
            package.
        classifier: Network with the architecture of a checkpoint that cannot rebuild its own. It is copied.

    Raises:
        ValueError: Neither a model nor a file has that name, the sha256 differs, or ``classifier`` is needed.
        FileNotFoundError: The file of a name is not in ``folder``.
    """
    models = shipped_models()
    if str(name_or_path) in models:
        return load_model(_checked(str(name_or_path), models[str(name_or_path)], Path(folder or FOLDER)), classifier)
    if not isinstance(name_or_path, str | Path) or not Path(name_or_path).is_file():
        raise ValueError(
            f"'name_or_path' should be the path of a checkpoint or one of {', '.join(models)}, got {name_or_path!r}."
        )
    return load_model(name_or_path, classifier)


def _checked(name: str, model: Shipped, folder: Path) -> Path:
    """The file of a model, after its sha256 was compared."""
    path, remedy = folder / model.file, "reinstall ebm_lightning, or load your own file by its path"
    if not path.is_file():
        raise FileNotFoundError(f"The file of {name!r} is not at {path.resolve()}: pass its 'folder', {remedy}.")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != model.sha256:
        raise ValueError(
            f"The sha256 of {path.resolve()} should be {model.sha256}, got {found}. The file is damaged or another "
            f"one: {remedy}, as in load('./{model.file}')."
        )
    return path
