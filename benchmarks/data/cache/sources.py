"""The hashes of a dataset's pictures: an unchanged dataset costs a look at each file's times.

`<cache root>/sources/<name>-<12 digits of the dataset's digest>-<12 of its paths>.npz` is a *manifest*: the
paths, stamps (`benchmarks.data.cache.source`) and SHA-256 of the pictures, training images first. It serves
caches of all sizes. It is a shortcut only: without it, or where a stamp differs, the file is hashed again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.cache.source import Source, Stamp, read, stamp_of
from benchmarks.data.dataset import Dataset
from results.files import atomic_write_bytes

FOLDER = "sources"
VERSION = 1
SHOWN = 1000
"""From so many files on, hashing is shown as progress."""


class Manifest(NamedTuple):
    """The content of a manifest of N pictures.

    Attributes:
        paths: N absolute paths.
        stamps: (N, 3) int64.
        hashes: (N, 32) uint8, SHA-256 of each file.
        young: (N,) bool, where the stamp proves nothing.
    """

    paths: list[str]
    stamps: NDArray[np.int64]
    hashes: NDArray[np.uint8]
    young: NDArray[np.bool_]

    @property
    def digest(self) -> str:
        """SHA-256 over the hashes, hexadecimal."""
        return digest_of(self.hashes)


class Sources:
    """The pictures of a dataset as they are on the disk, with the hashes that are known.

    Args:
        dataset: the images.
        cache_root: folder of all caches.

    Attributes:
        file: the manifest.
        paths: N absolute paths, training images first.
        stamps: (N, 3) int64, of now.
        hashes: (N, 32) uint8; valid where `known`.
        known: (N,) bool.
        before: (N, 32) uint8, the hashes of the manifest; None without one.
    """

    def __init__(self, dataset: Dataset, cache_root: Path) -> None:
        self.dataset, self.root = dataset, cache_root
        self.paths = _absolute((*dataset.train.paths, *dataset.test.paths))
        place = hashlib.sha256("\0".join(self.paths).encode(errors="surrogateescape")).hexdigest()[:12]
        self.label = f"{dataset.name}-{dataset.digest[:12]}-{place}"
        self.file = cache_root / FOLDER / f"{self.label}.npz"
        self.look()

    def look(self) -> None:
        """Compare the files with the manifest."""
        count = len(self.paths)
        self.stamps = _stamps(self.paths)
        self.hashes = np.zeros((count, 32), np.uint8)
        self.young = np.zeros(count, np.bool_)
        self.known = np.zeros(count, np.bool_)
        self.before: NDArray[np.uint8] | None = None
        self._same = np.zeros(count, np.bool_)
        self._changed = False
        manifest = load(self.file)
        if manifest is not None and manifest.paths == self.paths:
            self.before = manifest.hashes
            self._same = (self.stamps == manifest.stamps).all(axis=1) & (self.stamps[:, 0] >= 0)
            self.known = self._same & ~manifest.young
            self.hashes[self.known] = manifest.hashes[self.known]

    def confirm(self, workers: int = 1) -> None:
        """Hash the young pictures whose stamps are those of the manifest."""
        self._hash(np.flatnonzero(self._same & ~self.known), workers, None)

    def complete(self, workers: int, progress: Callable[[int, int], None] | None) -> None:
        """Hash all pictures that are not known; those that cannot be read stay unknown."""
        self._hash(np.flatnonzero(~self.known), workers, progress)

    def verify(self, workers: int, progress: Callable[[int, int], None] | None) -> None:
        """Hash all pictures again, whatever their stamps say."""
        self.known[:] = False
        self._hash(np.arange(len(self.paths)), workers, progress)

    def digest(self) -> str | None:
        """SHA-256 over the hashes of all pictures; None while one is unknown."""
        return digest_of(self.hashes) if self.known.all() else None

    def source(self, k: int) -> Source | None:
        """What is known of a picture."""
        if not self.known[k]:
            return None
        size, modified, changed = map(int, self.stamps[k])
        return Source((size, modified, changed), self.hashes[k].tobytes().hex(), bool(self.young[k]))

    def record(self, k: int, source: Source) -> None:
        """Take over what reading a picture has found."""
        self.stamps[k] = source.stamp
        self.hashes[k] = np.frombuffer(bytes.fromhex(source.sha256), np.uint8)
        self.young[k], self.known[k], self._changed = source.young, True, True

    def replaced(self) -> list[int]:
        """Positions of known pictures whose bytes are not those of the manifest."""
        if self.before is None:
            return []
        return list(map(int, np.flatnonzero(self.known & (self.hashes != self.before).any(axis=1))))

    def forget(self) -> None:
        """Remove the manifest, so that all pictures are hashed again."""
        with suppress(OSError):
            self.file.unlink()

    def write(self) -> None:
        """Write the manifest, if all pictures are known and something in it is new."""
        if not self._changed or not self.known.all():
            return
        buffer = io.BytesIO()
        np.savez(
            buffer,
            version=np.array(VERSION),
            paths=np.frombuffer(json.dumps(self.paths).encode(), np.uint8),
            stamps=self.stamps,
            hashes=self.hashes,
            young=self.young,
        )
        with suppress(OSError):  # on a full or read-only disk the pictures are hashed again next time
            self.file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(self.file, buffer.getvalue())
            self._changed = False

    def duplicates(self) -> tuple[str, ...]:
        """Remarks on pictures with the same bytes; all must be known."""
        count = len(self.dataset.train)
        keys = [row.tobytes() for row in self.hashes]
        first: dict[bytes, int] = {}
        twice: list[tuple[int, int]] = []
        for k in range(count):
            if first.setdefault(keys[k], k) != k:
                twice.append((first[keys[k]], k))
        shared = [(first[keys[k]], k) for k in range(count, len(keys)) if keys[k] in first]
        found = []
        for pairs, what in (
            (shared, f"{len(shared)} of {len(keys) - count} test images are byte for byte training images"),
            (twice, f"{len(twice)} of {count} training images are byte for byte the same as an earlier one"),
        ):
            if pairs:
                one, two = pairs[0]
                found.append(f"{self.dataset.name}: {what}, such as {self.paths[two]} and {self.paths[one]}")
        return tuple(found)

    def _hash(
        self, positions: NDArray[np.int64], workers: int, progress: Callable[[int, int], None] | None
    ) -> None:
        if not len(positions):
            return
        shown = progress if len(positions) >= SHOWN else None
        with ThreadPoolExecutor(max(workers, 1)) as threads:  # hashing and reading release the interpreter
            results = threads.map(_read, [self.paths[k] for k in positions])
            for done, (k, source) in enumerate(zip(positions, results, strict=True), 1):
                if source is not None:
                    self.record(int(k), source)
                if shown is not None and done % 100 == 0:
                    shown(done, len(positions))


def digest_of(hashes: NDArray[np.uint8]) -> str:
    """SHA-256 over (N, 32) hashes, hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(hashes).tobytes()).hexdigest()


def load(file: Path | str) -> Manifest | None:
    """A manifest; None if it is absent, damaged or of another version."""
    try:
        with np.load(file, allow_pickle=False) as arrays:  # reading verifies the archive's checksums
            if int(arrays["version"]) != VERSION:
                return None
            paths = json.loads(arrays["paths"].tobytes())
            found = Manifest(paths, arrays["stamps"], arrays["hashes"], arrays["young"])
    except Exception:  # zipfile and NumPy raise many kinds on a damaged file: hash again
        return None
    count = len(paths)
    shapes = (found.stamps.shape, found.hashes.shape, found.young.shape)
    return found if shapes == ((count, 3), (count, 32), (count,)) else None


def holds(file: str, digest: str) -> bool:
    """Whether the pictures of a manifest are on the disk, with hashes of a known digest; writes nothing."""
    manifest = load(file)
    if manifest is None or manifest.digest != digest:
        return False
    if (_stamps(manifest.paths) != manifest.stamps).any():
        return False
    for k in np.flatnonzero(manifest.young):
        source = _read(manifest.paths[k])
        if source is None or bytes.fromhex(source.sha256) != manifest.hashes[k].tobytes():
            return False
    return True


def _read(path: str) -> Source | None:
    try:
        return read(path)
    except OSError:
        return None


def _stamps(paths: Sequence[str]) -> NDArray[np.int64]:
    found: Iterable[Stamp] = map(stamp_of, paths)
    return np.array(list(found), np.int64).reshape(-1, 3)


def _absolute(paths: Iterable[Path]) -> list[str]:
    # Not `os.path.abspath`, which takes half a second for 120,000 images.
    here = os.getcwd()
    return [text if text.startswith(os.sep) else f"{here}{os.sep}{text}" for text in map(str, paths)]
