"""Checkpoints that are whole or not there at all."""

import contextlib
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final place, flushes it to the disk, and renames it: its name never means half.

    Lightning's own goes through the system's temporary folder, from where a file is copied if that is another disk;
    a kill during the copy leaves half a checkpoint under the final name. Paths that are no local files go to Lightning.
    Modules of this library put it in the place of Lightning's default; a ``CheckpointIO`` of your own is left alone.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``.

        Raises:
            OSError: It could not be written, as on a full disk. What was at ``path`` before is still there.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        final = Path(path)
        partial = final.with_name(f".{final.name}.partial")
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, final)
        except OSError as error:
            raise OSError(
                f"The checkpoint '{final}' was not written: {error}. Earlier checkpoints are whole; free space or name "
                "another folder, and resume from the last one."
            ) from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
        _flush_folder(final.parent)

    def load_checkpoint(self, path: _PATH, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read the checkpoint at ``path``; arguments as for Lightning's.

        Raises:
            FileNotFoundError: There is none.
            RuntimeError: The file is cut short or damaged, or is no checkpoint.
        """
        if "://" not in str(path) and Path(path).is_file() and not is_whole(path):
            newest = newest_whole(Path(path).parent)
            remedy = f"Resume from '{newest}', the newest whole one" if newest else "There is no whole one"
            raise RuntimeError(f"The checkpoint '{path}' is cut short or damaged. {remedy} in its folder.")
        try:
            return super().load_checkpoint(path, *args, **kwargs)
        except pickle.UnpicklingError as error:
            raise RuntimeError(
                f"The checkpoint '{path}' was not written by this library, or holds objects: {error}"
            ) from error


def is_whole(path: _PATH) -> bool:
    """Whether every part of the checkpoint at ``path`` is there and has the checksum that it was written with."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None and any(name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, EOFError):
        return False


def newest_whole(folder: _PATH) -> Path | None:
    """The checkpoint in ``folder`` that was written last and is whole, or None."""
    for path in sorted(Path(folder).glob("*.ckpt"), key=lambda p: p.stat().st_mtime_ns, reverse=True):
        if is_whole(path):
            return path
    return None


def _flush_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where folders can be flushed."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
