from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from benchmarks.launch import memory

FAULTS = """
import resource, sys, torch
from benchmarks.launch.memory import keep_large_blocks
if sys.argv[1] == "keep":
    assert keep_large_blocks()
for k in range(24):
    if k == 20:  # the heap has settled
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(40 * 2**20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is one of glibc")
def test_large_blocks_are_faulted_in_once():
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, how], check=True, text=True, capture_output=True
            ).stdout
        )
        for how in ("keep", "leave")
    }
    assert faults["leave"] > 30_000  # four times 40 MiB in pages of 4 KiB
    assert faults["keep"] < 2_000


def test_elsewhere_nothing_happens(monkeypatch):
    class Library:
        pass

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    assert memory.keep_large_blocks() is False
