"""Keeping freed memory: the number of page faults in a subprocess, and errors where it is not possible."""

import platform
import subprocess
import sys

import pytest

from ebm_lightning.samplers.memory import keep_freed_memory

GLIBC = platform.libc_ver()[0] == "glibc"

COUNT = """
import resource, torch
from ebm_lightning.samplers.memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.empty(2**22).fill_(1.0)  # 16 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
without = faults()
keep_freed_memory()
faults()
print(without, faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
def test_freed_blocks_cause_no_more_page_faults():
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    without, kept = map(int, done.stdout.split())
    assert without >= 100
    assert kept < without / 10


def test_other_c_libraries_raise(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with pytest.raises(RuntimeError, match="'keep_freed_memory' needs glibc"):
        keep_freed_memory()


@pytest.mark.parametrize("threshold", [0, 2**31])
def test_bad_thresholds(threshold):
    with pytest.raises(ValueError, match=rf"'threshold' should be in \[1, 2147483647\], got {threshold}"):
        keep_freed_memory(threshold)
