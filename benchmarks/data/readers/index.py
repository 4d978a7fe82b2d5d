"""A small copy of what a large annotation file says, so that it is parsed once and not by everyone.

COCO's instances take ten seconds and gigabytes to parse; the names and labels in them are a few
megabytes. They are kept as plain arrays in `<data root>/cache/index/`, one file for each annotation
file and reader. An index counts only while its annotation file has the size and the time of change
that it had, and while it reads back whole; otherwise the file is parsed and the index rewritten.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from results.files import atomic_write_bytes

VERSION = 1
YOUNG = 2.0
"""Seconds: a file that changed so recently may change again without its time of change showing."""


@dataclass(frozen=True, eq=False)
class Parsed:
    """What an annotation file says, every image of it, in the file's order.

    Attributes:
        classes: K names.
        ids: N names of images, unique.
        names: N paths relative to the folder of images, `/` between folders.
        labels: (N, K) uint8, 1 where the class is present.
    """

    classes: tuple[str, ...]
    ids: tuple[str, ...]
    names: tuple[str, ...]
    labels: NDArray[np.uint8]


def parsed(file: Path, reader: str, folder: Path | None, parse: Callable[[Path], Parsed]) -> Parsed:
    """What a file says, from its index where there is one that holds.

    Args:
        file: the annotation file.
        reader: name and version of what `parse` does; another one has its own index.
        folder: folder of the indexes; None works without. One that cannot be written is no error.
        parse: reads the file itself.
    """
    state = _state(file, reader)
    if folder is None or state is None:
        return parse(file)
    # One place for each file: an index that is out of date is replaced, not left behind.
    place = hashlib.sha256(f"{reader}\0{os.path.abspath(file)}".encode(errors="surrogateescape"))
    index = folder / f"{place.hexdigest()[:32]}.npz"
    found = _load(index, state)
    if found is not None:
        return found
    content = parse(file)
    if _state(file, reader) == state and time.time() - file.stat().st_mtime > YOUNG:
        with suppress(OSError):  # a full or read-only disk costs time, not the result
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(index, _packed(content, state))
    return content


def _state(file: Path, reader: str) -> str | None:
    """What an index stands for; None if there is no such file, which `parse` then says."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    path = os.path.abspath(file)
    key = json.dumps([VERSION, reader, path, found.st_size, found.st_mtime_ns])
    return hashlib.sha256(key.encode()).hexdigest()


def _packed(content: Parsed, state: str) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        state=_bytes(state),
        classes=_bytes(content.classes),
        ids=_bytes(content.ids),
        names=_bytes(content.names),
        labels=np.packbits(content.labels, axis=1),
    )
    return buffer.getvalue()


def _load(index: Path, state: str) -> Parsed | None:
    """The content of an index; None if it is missing, damaged or of another state."""
    try:
        # The archive's checksums are verified while its arrays are read.
        with np.load(index, allow_pickle=False) as arrays:
            if _texts(arrays["state"]) != state:
                return None
            classes, ids, names = (tuple(_texts(arrays[k])) for k in ("classes", "ids", "names"))
            packed = arrays["labels"]
        labels = np.unpackbits(packed, axis=1, count=len(classes))
    except Exception:  # whatever a damaged file makes zipfile and NumPy raise: parse again
        return None
    if len(ids) != len(names) or packed.shape != (len(ids), -(-len(classes) // 8)):
        return None
    return Parsed(classes, ids, names, labels)


def _bytes(texts: str | Sequence[str]) -> NDArray[np.uint8]:
    """Texts as UTF-8 JSON in an array: NumPy's own texts take four bytes for each character."""
    return np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)


def _texts(array: NDArray[np.uint8]) -> Any:
    return json.loads(array.tobytes())
