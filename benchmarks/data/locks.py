"""One process at a time: a lock that the operating system frees when its holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import current_process
from pathlib import Path

from methods.errors import UserError


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file for the length of a `with` block; wait while another process has it.

    Args:
        path: the lock file. It is created where needed and stays: removing it would let two
            processes lock two different files of the same name.

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
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{path}: cannot be created: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(
                f"{path}: this file system has no file locks ({error.strerror}); "
                "choose a folder on another one"
            ) from None
        yield
    finally:
        os.close(descriptor)
