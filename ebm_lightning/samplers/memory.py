"""Keep freed memory in glibc's heap, which saves page faults on CPU."""

import ctypes
import platform

from ebm_lightning.checks import check_integer

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_memory(threshold: int = 2**30) -> None:
    """Make glibc keep freed blocks below ``threshold`` bytes for later allocations (CPU memory, Linux).

    Each step of a chain frees its activations and allocates them again. By default glibc returns blocks of megabytes to
    the system immediately, so every step pays for thousands of page faults: up to half of the time of a small network,
    see ``docs/speed.md``. The cost is that resident memory stays at its peak until the process ends.

    The setting applies to the whole process and cannot be undone. Call this function once, at the start of a script.

    References:
        ``man 3 mallopt``, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.

    Arguments:
        threshold: Size in bytes, from 1 to 2^31 - 1. 1 GiB by default.

    Raises:
        ValueError: ``threshold`` is out of range.
        RuntimeError: The C library is not glibc, or it rejects the threshold.
    """
    check_integer("threshold", threshold, at_least=1, at_most=2**31 - 1)
    if platform.libc_ver()[0] != "glibc":
        raise RuntimeError(
            f"'keep_freed_memory' needs glibc, which this {platform.system()} system does not use. Leave it out: it "
            "only affects speed."
        )
    libc = ctypes.CDLL(None)
    for parameter in (MMAP_THRESHOLD, TRIM_THRESHOLD):
        if not libc.mallopt(parameter, threshold):
            raise RuntimeError(f"'threshold' should be accepted by glibc, got {threshold}. Use a smaller one.")
