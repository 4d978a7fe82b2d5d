"""Which caches lie below a cache root, and what their pixels are of."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.cache.build import FORMAT, HASHES, SPLITS
from benchmarks.data.cache.decode import DECODING, RESIZE, Place
from benchmarks.data.cache.sources import digest_of
from benchmarks.data.dataset import Dataset
from methods.errors import UserError, first_line
from results.files import folders

_FIELDS: dict[str, type] = {
    "dataset": str,
    "size": int,
    "decoding": str,
    "resize": str,
    "train": int,
    "test": int,
    "chunk": int,
    "chunks": dict,
    "sources": str,
    "digest": str,
}
"""Fields of `meta.json` that are read, and their types."""


def name_of(dataset: Dataset, size: int, digest: str) -> str:
    """Name of the folder of a finished cache."""
    return f"{dataset.name}-{digest[:12]}-{size}"


def is_complete(directory: Path) -> bool:
    """Whether a folder holds a finished cache."""
    return (directory / "meta.json").is_file()


def read_meta(directory: Path) -> dict[str, Any]:
    """What a finished cache says of itself.

    Raises:
        UserError: it cannot be read, or lacks a field.
    """
    try:
        found = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedCacheError(directory, f"meta.json: {error}") from None
    if not isinstance(found, dict):
        raise DamagedCacheError(directory, "meta.json holds no table of fields")
    if found.get("format") == FORMAT:  # of other formats only the number is read
        for name, kind in _FIELDS.items():
            if not isinstance(found.get(name), kind) or isinstance(found[name], bool):
                raise DamagedCacheError(directory, f"meta.json: {name!r} is missing or of the wrong kind")
        for split in SPLITS:
            if not isinstance(found["chunks"].get(split), list):
                raise DamagedCacheError(directory, f"meta.json: 'chunks' lacks {split!r}")
    return found


class DamagedCacheError(UserError):
    """A cache cannot be used: `directory`, and `what` is wrong."""

    def __init__(self, directory: Path, what: str) -> None:
        super().__init__(f"cache {directory} is damaged: {what}; remove the folder and prepare again")
        self.directory, self.what = directory, what


def put_aside(damage: DamagedCacheError) -> str:
    """Give a damaged cache another name, for who reads it still; returns a line that says so.

    Raises:
        DamagedCacheError: it cannot be renamed.
    """
    place = damage.directory
    aside = place.with_name(f".damaged-{place.name}-{secrets.token_hex(2)}")
    try:
        os.rename(place, aside)
    except OSError:
        raise damage from None
    return f"cache {place} is damaged: {damage.what}; it is made again, the old one is {aside.name} beside it"


def hashes_of(directory: Path, meta: dict[str, Any]) -> NDArray[np.uint8]:
    """(N, 32) uint8: SHA-256 of the pictures that a cache was made from, training images first.

    Raises:
        UserError: its list is not the one that its digest is of.
    """
    try:
        found = np.load(directory / HASHES, allow_pickle=False)
    except Exception as error:  # NumPy and zipfile raise many kinds on a damaged file
        raise DamagedCacheError(directory, f"{HASHES}: {first_line(error)}") from None
    if digest_of(found) != meta["sources"]:
        raise DamagedCacheError(directory, f"{HASHES} has changed on the disk")
    return found


def of_name(root: Path, name: str, size: int) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The finished caches of a dataset's name and a size, whose pixels are made by our rule."""
    try:
        found = sorted(folders(root))
    except OSError:  # a file, or a folder that cannot be listed: said when something is to be written there
        return
    for folder in found:
        directory = Path(folder)
        named = directory.name.startswith(f"{name}-") and folder.endswith(f"-{size}")
        if not named or not is_complete(directory):
            continue
        with suppress(UserError):  # another's damage is no reason to stop
            meta = read_meta(directory)
            if meta.get("format") != FORMAT or meta["dataset"] != name:
                continue
            if (meta["decoding"], meta["resize"]) == (DECODING, RESIZE):
                yield directory, meta


def shelf(root: Path, name: str, size: int, wanted: NDArray[np.uint8]) -> dict[bytes, Place]:
    """Where pixels of pictures lie in finished caches, by the picture's SHA-256.

    Chunks that hold one of the pictures are compared with their hash first: damage is not copied.

    Args:
        root: folder of all caches.
        name: the dataset's name.
        size: side of the images in pixels.
        wanted: (n, 32) uint8, the hashes of the pictures.
    """
    missing = {row.tobytes() for row in wanted}
    found: dict[bytes, Place] = {}
    for directory, meta in of_name(root, name, size):
        try:
            hashes = [row.tobytes() for row in hashes_of(directory, meta)]
        except UserError:
            continue
        first = 0
        for split in SPLITS:
            for number, expected in enumerate(meta["chunks"][split]):
                start = number * meta["chunk"]
                stop = min(start + meta["chunk"], meta[split])
                here = {hashes[first + k]: k for k in range(start, stop) if hashes[first + k] in missing}
                if here and _sha256(directory / f"{split}.u8", start, stop, size) == expected:
                    for key, k in here.items():
                        found[key] = (directory / f"{split}.u8", k * 3 * size**2)
                    missing -= here.keys()
            first += meta[split]
    return found


def outdated(root: Path, dataset: Dataset, size: int) -> str:
    """A remark on a cache of an earlier format, which is left alone; "" without one."""
    old = root / name_of(dataset, size, dataset.digest)
    if not old.is_dir():
        return ""
    return (
        f"{old}: made by an earlier version, which did not record the pictures it decoded; it is not used, "
        "the images are decoded again; remove the folder to have its space"
    )


def _sha256(file: Path, start: int, stop: int, size: int) -> str:
    length = 3 * size**2
    try:
        with open(file, "rb") as stream:
            stream.seek(start * length)
            return hashlib.sha256(stream.read((stop - start) * length)).hexdigest()
    except OSError:
        return ""
