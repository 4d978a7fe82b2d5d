"""The most memory that a piece of work used at once, of the host and of its GPU."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import torch

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_RESET_PEAK = "5"


class PeakMemory:
    """Measures this process from the moment the object is made.

    Host memory is the resident set. The pages of memory-mapped image caches that were touched belong to
    it, although the kernel can take them back. Linux starts the measurement anew where it lets a process
    write to /proc/self/clear_refs; elsewhere the peak is that of the process's whole life, so earlier runs
    of the same worker are in it. Other processes of a group are not.

    Args:
        device: where the work computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with suppress(OSError):  # no Linux, or a container that forbids it: see the class
            _CLEAR_REFS.write_text(_RESET_PEAK)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def read(self) -> dict[str, int | None]:
        """Bytes: "host", and "device" as torch allocated them there; None where nobody tells.

        Without a GPU "device" is None; "host" is None where neither /proc nor `resource` exists.
        """
        cuda = self.device.type == "cuda"
        return {
            "host": _host_peak(),
            "device": torch.cuda.max_memory_allocated(self.device) if cuda else None,
        }


def _host_peak() -> int | None:
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return 1024 * int(found[1])
    try:
        import resource  # not on Windows
        import sys
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
