"""SHA-256 of weights files; nothing here imports torch."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

from methods.errors import UserError


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file as hex; cached by path, size and modification time.

    Raises:
        UserError: the file does not exist.
    """
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")
    status = os.stat(path)
    return _file_digest(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _file_digest(path: Path, size: int, modified: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
