"""One process at a time: a lock that the operating system frees when its holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import current_process
from pathlib import Path

from methods.errors import UserError

ATTEMPTS = 1000
"""Lock files that may be removed under our hands, each by one that held it before."""


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file for the length of a `with` block; wait while another process has it.

    Args:
        path: the lock file. It and its folder are created where needed; whoever holds it may remove
            both.

    Raises:
        UserError: the folder cannot be written to, or its file system has no locks.
        RuntimeError: called from a main module that a child process imports again; the child would
            wait for its parent, which waits for the child.
    """
    if getattr(current_process(), "_inheriting", False):  # what multiprocessing itself asks
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
            # Its holder may have removed it, and another process locked a new one of that name.
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
