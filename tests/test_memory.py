"""Keeping freed memory: refused where it cannot work, and felt where it does, in a process of its own."""

import platform
import subprocess
import sys

import pytest

from ebm_lightning.memory import keep_freed_memory

GLIBC = platform.libc_ver()[0] == "glibc"

COUNT = """
import resource, torch
from ebm_lightning.memory import keep_freed_memory
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


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
def test_freed_blocks_cause_no_more_page_faults():
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    without, kept = map(int, done.stdout.split())
    assert without >= 100
    assert kept < without / 10


def test_another_c_library_is_refused(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with pytest.raises(RuntimeError, match="'keep_freed_memory' needs glibc"):
        keep_freed_memory()


@pytest.mark.parametrize("threshold", [0, 2**31])
def test_bad_thresholds(threshold):
    with pytest.raises(ValueError, match=f"'threshold' should be .* got {threshold}"):
        keep_freed_memory(threshold)
