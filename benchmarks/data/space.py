"""Room on the disk: how much is needed, reserved before it is filled."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from methods.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system calls a full disk, a used-up quota and a limit on the length of files."""


class DiskFullError(UserError):
    """There is not enough room."""


def amount(count: float) -> str:
    """Bytes for a reader: "3.4 GiB", "12.0 MiB", "0.4 MiB"."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def unallocated(file: Path) -> int:
    """Bytes of a file that have no place on the disk yet; a file is made in full length at once."""
    found = os.stat(file)
    return max(found.st_size - found.st_blocks * 512, 0)


def reserve(file: Path) -> None:
    """Give a file its place on the disk, so that a full one shows now and not after hours.

    Where the file system cannot do that nothing happens. `os.posix_fallocate` is not used because
    the C library then writes into every block instead, which takes as long as filling the file.

    Raises:
        OSError: there is not enough room.
    """
    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    length = file.stat().st_size
    # Not Linux, nothing to do, or a system whose lengths do not fit.
    if function is None or not length or ctypes.sizeof(ctypes.c_long) < 8:
        return
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
    descriptor = os.open(file, os.O_RDWR)
    try:
        if function(descriptor, 0, 0, length) == 0:
            return
        code = ctypes.get_errno()
        if code in FULL:
            raise OSError(code, os.strerror(code), str(file))
    finally:
        os.close(descriptor)
