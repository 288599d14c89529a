"""Memory that the C library keeps: on CPU, what a chain's step frees is mapped anew, page by page, in the next one."""

import ctypes
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_memory(threshold: int = 2**30) -> None:
    """Tell glibc to keep freed blocks below ``threshold`` bytes for the next allocation. CPU, Linux.

    Each step of a chain frees its activations and asks for them again. By default glibc gives blocks of megabytes back
    to the system at once, so that every step pays for thousands of page faults: up to half of its time for a small
    network, see ``docs/speed.md``. The price: resident memory stays at its peak until the process ends. It holds for
    the whole process and cannot be undone; call it once, first thing in a script.

    References:
        ``man 3 mallopt``, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.

    Arguments:
        threshold: In bytes, 1 GiB by default, below 2 GiB.

    Raises:
        ValueError: ``threshold`` outside 1 ... 2^31 - 1.
        RuntimeError: The C library is not glibc, or refuses.
    """
    if not 0 < threshold < 2**31:
        raise ValueError(f"'threshold' should be a number of bytes from 1 to 2^31 - 1, got {threshold}.")
    if platform.libc_ver()[0] != "glibc":
        raise RuntimeError(
            f"'keep_freed_memory' needs glibc, which {platform.system()} here does not use. Leave it out: it changes "
            "speed alone."
        )
    libc = ctypes.CDLL(None)
    for parameter in (MMAP_THRESHOLD, TRIM_THRESHOLD):
        if not libc.mallopt(parameter, threshold):
            raise RuntimeError(f"'threshold' should be one that glibc takes, got {threshold}: it refused. Lower it.")
