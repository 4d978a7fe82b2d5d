"""A picture's file: its hash, and what the file system says of it.

Size, time of modification and time of the last change of the inode (`ctime`) stand for the content. The last
cannot be set by a program: a picture that is replaced shows even where `cp -p`, `rsync -t` or `touch` give it
the size and the time of the one before. Where it lies within `YOUNG` of the moment of reading it proves
nothing, because a file may change twice within a tick of its file system's clock.
"""

from __future__ import annotations

import hashlib
import os
import time
from typing import NamedTuple

YOUNG = 2_000_000_000
"""Nanoseconds."""
ABSENT = (-1, 0, 0)
"""The stamp of a file that is not there, or cannot be looked at."""

Stamp = tuple[int, int, int]
"""Size in bytes, time of modification and time of change in nanoseconds."""


class Source(NamedTuple):
    """A file when it was read.

    Attributes:
        stamp: size and times.
        sha256: of its bytes, hexadecimal.
        young: whether the times lie so near to the reading that they prove nothing.
    """

    stamp: Stamp
    sha256: str
    young: bool

    def confirmed(self, path: str | os.PathLike[str]) -> Source | None:
        """This, if the file is as it was; else what is there now, if its bytes are the same; else None."""
        if not self.young and stamp_of(path) == self.stamp:
            return self
        try:
            now = read(path)
        except OSError:
            return None
        return now if now.sha256 == self.sha256 else None


def stamp_of(path: str | os.PathLike[str]) -> Stamp:
    """The present stamp of a file; `ABSENT` without one."""
    try:
        found = os.stat(path)
    except OSError:
        return ABSENT
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read(path: str | os.PathLike[str]) -> Source:
    """Hash a file.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        now, found = time.time_ns(), os.fstat(file.fileno())
        sha = hashlib.sha256()
        while part := file.read(1 << 20):
            sha.update(part)
    # A time of modification in the future is an archive's; it says nothing about now.
    young = found.st_ctime_ns > now - YOUNG or abs(found.st_mtime_ns - now) < YOUNG
    return Source((found.st_size, found.st_mtime_ns, found.st_ctime_ns), sha.hexdigest(), young)
