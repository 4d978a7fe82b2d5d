"""A small index of a large annotation file, so that only the first process parses the file.

Parsing COCO's instances takes ten seconds and gigabytes; their names and labels are a few megabytes, which
are kept as plain arrays in `<data root>/cache/index/`, one file for each annotation file and reader. An
index is valid while its annotation file has the same size and modification time and while the index can be
read in full; otherwise the file is parsed and the index rewritten.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from results.files import atomic_write_bytes, filesystem_now

VERSION = 1
YOUNG = 2.0
"""Seconds: a file modified more recently may change again within the resolution of its time stamp."""

_WRITES: ContextVar[bool] = ContextVar("_WRITES", default=True)


@dataclass(frozen=True, eq=False)
class Parsed:
    """The content of an annotation file: all its images, in the file's order.

    Attributes:
        classes: K names.
        ids: N names of images, unique.
        names: N paths relative to the folder of images, `/` between folders.
        labels: (N, K) uint8, 1 where the class is present.
        parents: classes that the file names as the group of another one.
    """

    classes: tuple[str, ...]
    ids: tuple[str, ...]
    names: tuple[str, ...]
    labels: NDArray[np.uint8]
    parents: tuple[str, ...] = ()


@contextmanager
def read_only() -> Iterator[None]:
    """Within the block indexes are read, and none is written."""
    before = _WRITES.set(False)
    try:
        yield
    finally:
        _WRITES.reset(before)


def parsed(file: Path, reader: str, folder: Path | None, parse: Callable[[Path], Parsed]) -> Parsed:
    """The content of a file, from its index if that is valid.

    Args:
        file: the annotation file.
        reader: name and version of `parse`; each has an index of its own.
        folder: folder of the indexes; None uses none. A folder that cannot be written to is no error.
        parse: reads the file itself.
    """
    state = state_of(file, reader)
    if folder is None or state is None:
        return parse(file)
    # One path for each file: an outdated index is replaced, not left behind.
    place = hashlib.sha256(f"{reader}\0{os.path.abspath(file)}".encode(errors="surrogateescape"))
    index = folder / f"{place.hexdigest()[:32]}.npz"
    found = unpack(index, state)
    if found is not None:
        return found
    content = parse(file)
    if _WRITES.get() and state_of(file, reader) == state:
        with suppress(OSError):  # on a full or read-only disk the file is parsed again next time
            folder.mkdir(parents=True, exist_ok=True)
            if filesystem_now(folder) - file.stat().st_mtime > YOUNG:
                atomic_write_bytes(index, pack(content, state))
    return content


def state_of(file: Path, reader: str) -> str | None:
    """Digest of reader, path, size and modification time, which an index must match.

    None if the file is missing: `parse` then raises the error.
    """
    try:
        found = os.stat(file)
    except OSError:
        return None
    path = os.path.abspath(file)
    key = json.dumps([VERSION, reader, path, found.st_size, found.st_mtime_ns])
    return hashlib.sha256(key.encode()).hexdigest()


def pack(content: Parsed, state: str) -> bytes:
    """The bytes of an index file (NumPy's npz).

    Args:
        content: the content of the annotation file.
        state: see `state_of`.
    """
    buffer = io.BytesIO()
    np.savez(
        buffer,
        state=_bytes(state),
        classes=_bytes(content.classes),
        ids=_bytes(content.ids),
        names=_bytes(content.names),
        parents=_bytes(content.parents),
        labels=np.packbits(content.labels, axis=1),
    )
    return buffer.getvalue()


def unpack(index: Path, state: str) -> Parsed | None:
    """The content of an index file; None if it is missing, damaged or of another state."""
    try:
        # Reading the arrays verifies the archive's checksums.
        with np.load(index, allow_pickle=False) as arrays:
            if _texts(arrays["state"]) != state:
                return None
            classes, ids, names, parents = (
                tuple(_texts(arrays[k])) for k in ("classes", "ids", "names", "parents")
            )
            packed = arrays["labels"]
        labels = np.unpackbits(packed, axis=1, count=len(classes))
    except Exception:  # zipfile and NumPy raise many kinds on a damaged file: parse again
        return None
    if len(ids) != len(names) or packed.shape != (len(ids), -(-len(classes) // 8)):
        return None
    return Parsed(classes, ids, names, labels, parents)


def _bytes(texts: str | Sequence[str]) -> NDArray[np.uint8]:
    """Texts as UTF-8 JSON in an array: NumPy's own texts take four bytes a character."""
    return np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)


def _texts(array: NDArray[np.uint8]) -> Any:
    return json.loads(array.tobytes())
