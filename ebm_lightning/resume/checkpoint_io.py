"""Atomic checkpoint files: complete, or absent."""

import contextlib
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor, nn


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file in the same folder, flushes it to the disk, and renames it.

    Lightning's default writes through the system's temporary folder, and copies the file if that is on another disk. If
    the process is killed during the copy, a truncated checkpoint remains. Remote paths are handled by Lightning as
    usual. This library's modules replace Lightning's default with this class; they do not replace a custom
    ``CheckpointIO``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``.

        Raises:
            OSError: It could not be written, for example because the disk is full. An earlier file at ``path`` is
                unchanged.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        final = Path(path)
        partial = final.with_name(f".{final.name}.partial")
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                torch.save(_without_scalars(checkpoint), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, final)
        except OSError as error:
            raise OSError(
                f"The checkpoint '{final}' was not written: {error}. Earlier checkpoints are complete; free disk space "
                "or choose another folder, and resume from the last one."
            ) from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
        _flush_folder(final.parent)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read the checkpoint at ``path``; arguments as for ``TorchCheckpointIO``.

        Raises:
            FileNotFoundError: The file does not exist.
            RuntimeError: The file is truncated, damaged or not a checkpoint.
        """
        if "://" not in str(path) and Path(path).is_file() and not is_complete(path):
            newest = newest_complete(Path(path).parent)
            remedy = f"Resume from '{newest}', the newest complete one" if newest else "There is no complete one"
            raise RuntimeError(f"The checkpoint '{path}' is truncated or damaged. {remedy} in its folder.")
        try:
            return super().load_checkpoint(path, *args, **kwargs)
        except pickle.UnpicklingError as error:
            raise RuntimeError(
                f"The checkpoint '{path}' was not written by this library, or contains objects: {error}"
            ) from error


def is_complete(path: str | Path) -> bool:
    """Whether the file at ``path`` is a checkpoint whose parts are all present with the right checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None and any(name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, EOFError):
        return False


def newest_complete(folder: str | Path) -> Path | None:
    """The complete checkpoint in ``folder`` that was written last, or None."""
    newest_first = sorted(Path(folder).glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return next(filter(is_complete, newest_first), None)


def match_keys(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """``state`` with the keys of ``module``, if ``torch.compile`` wraps parts of only one of the two.

    Raises:
        ValueError: A weight has another shape in ``module``.
    """
    own = {_uncompiled(name): (name, value) for name, value in module.state_dict().items()}
    matched = {}
    for name, saved in state.items():
        own_name, value = own.get(_uncompiled(name), (name, saved))
        if value.shape != saved.shape and value.numel() and saved.numel():  # an empty one is filled by a fit
            raise ValueError(
                f"'classifier' should be the network that was saved, got '{name}' of shape {tuple(value.shape)} for "
                f"{tuple(saved.shape)} in the checkpoint. Build the same network, or choose another checkpoint."
            )
        matched[own_name] = saved
    return matched


def _without_scalars(value: Any) -> Any:
    """``value`` with scalars of NumPy as numbers: ``weights_only=True`` refuses a learning rate of ``np.float64``."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {name: v if name == "state_dict" else _without_scalars(v) for name, v in value.items()}
    return type(value)(map(_without_scalars, value)) if type(value) in (list, tuple) else value


def _flush_folder(folder: Path) -> None:
    """Make the rename survive a power cut, on systems where a folder can be flushed."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _uncompiled(name: str) -> str:
    return name.replace("_orig_mod.", "")
