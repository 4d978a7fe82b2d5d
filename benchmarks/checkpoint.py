"""Checkpoints of a running training: weights-only archives, written aside and renamed.

One file holds one state, so it is whole or absent: bytes go to a temporary file, are fsynced, and
take their name by `os.replace`. The last two are kept; one that cannot be read is passed over with
a warning and the one before it is used.
"""

from __future__ import annotations

import io
import logging
import time
from pathlib import Path
from typing import Any

import torch

from results.files import atomic_write_bytes

log = logging.getLogger(__name__)
KEEP = 2


class Checkpoints:
    """The checkpoints of one directory.

    Args:
        directory: where they lie; made on the first save.
        every: seconds between checkpoints inside an epoch; 0 saves after every step. The moment
            of a checkpoint never changes a number.
    """

    def __init__(self, directory: Path, every: float) -> None:
        self.directory, self.every = directory, every
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save inside an epoch."""
        return time.monotonic() - self._last >= self.every

    def save(self, state: dict[str, Any], epoch: int, step: int) -> None:
        """Write a state; older ones beyond the last two are removed."""
        self.directory.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        atomic_write_bytes(self.directory / f"{epoch:05d}-{step:07d}.pt", buffer.getvalue())
        for old in self._files()[:-KEEP]:
            old.unlink(missing_ok=True)
        self._last = time.monotonic()

    def load(self, map_location: Any = "cpu") -> dict[str, Any] | None:
        """The newest state that can be read, or None. Nothing in a file is executed."""
        for path in reversed(self._files()):
            try:
                return torch.load(path, map_location=map_location, weights_only=True)
            except Exception as error:  # any damage whatever: the checkpoint before it is tried
                log.warning("checkpoint %s cannot be read (%s); trying the one before", path, error)
        return None

    def clear(self) -> None:
        """Remove every checkpoint, once the result is written."""
        for path in self.directory.glob("*"):
            path.unlink(missing_ok=True)
        if self.directory.is_dir():
            self.directory.rmdir()

    def _files(self) -> list[Path]:
        return sorted(self.directory.glob("*.pt"))
