"""Warnings that do not run into progress bars."""

import sys

from lightning.pytorch.utilities import rank_zero_warn


def warn(message: str) -> None:
    """Warn on rank 0. Progress bars are removed from the terminal before, and drawn again after.

    Arguments:
        message: Which model it is, the reason, and the remedy.
    """
    from tqdm import tqdm  # Lightning requires it; imported here because few runs warn

    with tqdm.external_write_mode(file=sys.stderr):
        rank_zero_warn(message, stacklevel=4)
