"""The disk: free space, space reserved before it is filled, and locks that the system releases.

A lock is released by the operating system when its holder dies.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import current_process
from pathlib import Path

from methods.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system calls a full disk, a used-up quota and a limit on the length of files."""
ATTEMPTS = 1000
"""Lock files that may be removed while we open them, each by its former holder, before we give up."""


class DiskFullError(UserError):
    """There is too little disk space."""


def amount(count: float) -> str:
    """Bytes as text: "3.4 GiB", "12.0 MiB", "0.4 MiB"."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def unallocated(file: Path) -> int:
    """Bytes of a file that have no blocks on the disk yet, because it was created in full length."""
    found = os.stat(file)
    return max(found.st_size - found.st_blocks * 512, 0)


def reserve(file: Path) -> None:
    """Allocate a file's blocks, so that a full disk shows now and not after hours.

    On a file system that cannot do this nothing happens. `os.posix_fallocate` is not used, because the C
    library would then write into every block, which takes as long as filling the file.

    Raises:
        OSError: there is too little disk space.
    """
    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    length = file.stat().st_size
    # Not Linux, an empty file, or a system whose `long` is too short for lengths.
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


# -- locks --------------------------------------------------------------------------------------


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file during a `with` block; wait while another process holds it.

    Args:
        path: the lock file. It and its folder are created if needed; the holder may remove both.

    Raises:
        UserError: the folder cannot be written to, or its file system has no locks.
        RuntimeError: called from a main module that a child process imports again; the child would wait for
            its parent, which waits for the child.
    """
    if getattr(current_process(), "_inheriting", False):  # multiprocessing's own check
        raise RuntimeError(
            "a script that starts processes is imported again by each of them: put its work under "
            "`if __name__ == '__main__':`"
        )
    descriptor = _locked(path)
    try:
        yield
    finally:
        os.close(descriptor)


def _locked(path: Path) -> int:
    for _ in range(ATTEMPTS):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # removed between the two
        except OSError as error:
            raise UserError(f"{path}: cannot be created: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # The former holder may have removed it, and another process locked a new file of that name.
            if _same(descriptor, path):
                return descriptor
        except OSError as error:
            os.close(descriptor)
            raise UserError(
                f"{path}: this file system has no file locks ({error.strerror}); "
                "choose a folder on another one"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise UserError(f"{path}: cannot be locked: it is removed again and again")


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
