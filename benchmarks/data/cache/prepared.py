"""The cache of resized images: decoded once, then read through a memory map.

`<cache root>/<name>-<first 12 digits of the dataset's digest>-<size>/` holds `train.u8` and `test.u8`,
(N, 3, S, S) uint8 RGB, and `meta.json`, which is written last: a cache with it is complete. Until then
`chunks/` holds one marker for each finished chunk, written after the chunk's pixels are on the disk: when a
call is killed at any moment, the next call continues its work.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.data.cache.build import FORMAT, SPLITS, Builder, Progress, UnreadableError, named
from benchmarks.data.cache.decode import pixel_limit
from benchmarks.data.cache.skipped import Skipped
from benchmarks.data.dataset import Dataset
from benchmarks.data.disk import DiskFullError, exclusive
from benchmarks.provenance import cores
from methods.errors import UserError

if TYPE_CHECKING:
    import torch

CHUNK = 256
"""Images per chunk. It must not change: the digest is computed from the chunks' hashes."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A dataset whose images are in the cache.

    Attributes:
        dataset: its names and labels.
        size: side S of the images in pixels.
        digest: SHA-256 over the dataset's digest and all pixels, hexadecimal.
        directory: folder of the cache.
        skipped: (id, reason) of the unreadable images that `dataset` is without.
    """

    dataset: Dataset
    size: int
    digest: str
    directory: Path
    skipped: tuple[tuple[str, str], ...] = ()

    @cached_property
    def train(self) -> np.memmap:
        """(N, 3, S, S) uint8 RGB training images, read-only."""
        return self._map("train")

    @cached_property
    def test(self) -> np.memmap:
        """(M, 3, S, S) uint8 RGB test images, read-only."""
        return self._map("test")

    def images(self, split: str, indices: ArrayLike) -> torch.Tensor:
        """Gather images of a split into one tensor.

        Args:
            split: "train" or "test".
            indices: (B,) positions, an integer tensor, array or list.

        Returns:
            (B, 3, S, S) uint8 on the CPU, contiguous, a copy.

        Raises:
            IndexError: a position outside the split.
        """
        import torch  # planning and preparing do not need it

        pixels: NDArray[np.uint8] = np.asarray(self.train if split == "train" else self.test)
        positions = np.asarray(indices, dtype=np.int64)
        return torch.from_numpy(pixels[positions])

    def verify(self, progress: Progress | None = None) -> None:
        """Read every pixel and compare it with the hashes of the time of writing.

        Raises:
            UserError: a chunk differs; the message names the file and says what to do.
        """
        meta = _read_meta(self.directory)
        total = len(self.train) + len(self.test)
        done = 0
        for split in SPLITS:
            pixels = np.asarray(self.train if split == "train" else self.test)
            for k, expected in enumerate(meta["chunks"][split]):
                part = pixels[k * meta["chunk"] : (k + 1) * meta["chunk"]]
                if hashlib.sha256(part.data).hexdigest() != expected:
                    raise _damaged(self.directory, f"{split}.u8 has changed on the disk")
                done += len(part)
                if progress is not None:
                    progress(done, total)

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would contain all pixels; the receiver opens its own map.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def _map(self, split: str) -> np.memmap:
        count = len(getattr(self.dataset, split))
        shape = (count, 3, self.size, self.size)
        return np.memmap(self.directory / f"{split}.u8", dtype=np.uint8, mode="r", shape=shape)


def prepare(
    dataset: Dataset,
    size: int,
    cache_root: Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    skip_bad: bool = False,
    announce: Callable[[str], None] = lambda line: None,
) -> Prepared:
    """Decode and resize a dataset's images into the cache, or open the finished cache.

    Several processes may call this at once: one works, the others wait for it. After a killed call the next
    one continues. Where the file system can reserve disk space, a full disk is reported before anything is
    decoded, and nothing of the cache is left behind.

    Args:
        dataset: the images.
        size: side of the square images in pixels.
        cache_root: folder of all caches.
        workers: decoding processes; None is one for each core of this process, at most 16; 1 decodes in this
            process.
        progress: called with (images done, images in total).
        skip_bad: leave unreadable images out instead of failing. They are recorded beside the caches
            (`benchmarks.data.cache.skipped`), and the dataset without them gets a cache and a digest of its
            own.
        announce: called with one-line remarks: the disk space needed, before anything is decoded, and the
            images that are left out.

    Raises:
        UserError: images that cannot be read (all named), too little disk space, a damaged cache.
    """
    if size < 1:
        raise UserError(f"image size is {size}; it must be at least 1 pixel")
    pixel_limit()  # a wrong setting is said once, not for each image
    caches = _Caches(size, cache_root, workers or min(cores(), 16), progress, announce)
    if not skip_bad:
        return caches.prepare(dataset)
    skipped = Skipped(dataset, cache_root)
    # A finished cache is used without a lock: the folder may be read-only here.
    if skipped.is_current() and caches.is_complete(skipped.rest):
        ready = caches.prepare(skipped.rest)
    else:
        with exclusive(skipped.lock):
            ready = caches.prepare_without_bad(skipped)
            skipped.lock.unlink(missing_ok=True)
    if skipped.images:
        announce(
            f"{dataset.name}: {len(skipped.images)} of {len(dataset.train) + len(dataset.test)} "
            "images cannot be read and are left out: "
            f"{named([(i.path, i.reason) for i in skipped.images], 5)}; recorded in {skipped.file}"
        )
    return dataclasses.replace(ready, skipped=skipped.reasons)


def is_prepared(dataset: Dataset, size: int, cache_root: Path, *, skip_bad: bool = False) -> bool:
    """Whether `prepare` would find a finished cache."""
    images = dataset
    if skip_bad:
        skipped = Skipped(dataset, cache_root)
        images = skipped.rest if skipped.is_current() else dataset
    return _is_complete(_directory(images, size, cache_root))


@dataclass(frozen=True)
class _Caches:
    """The caches of one size, and how to fill them; see `prepare` for the fields."""

    size: int
    root: Path
    workers: int
    progress: Progress | None
    announce: Callable[[str], None]

    def directory(self, dataset: Dataset) -> Path:
        return _directory(dataset, self.size, self.root)

    def is_complete(self, dataset: Dataset) -> bool:
        return _is_complete(self.directory(dataset))

    def prepare(self, dataset: Dataset, donor: Builder | None = None) -> Prepared:
        """Prepare all images of a dataset; `donor` is an unfinished cache to copy images from."""
        directory = self.directory(dataset)
        if not self.is_complete(dataset):
            with exclusive(directory / "lock"):
                if not self.is_complete(dataset):
                    Builder(dataset, self.size, directory, CHUNK, self.progress, self.announce, donor).build(
                        self.workers
                    )
        elif (directory / "chunks").exists():  # killed between the last file and the clean-up
            with exclusive(directory / "lock"):
                shutil.rmtree(directory / "chunks", ignore_errors=True)
        return _open(dataset, self.size, directory)

    def prepare_without_bad(self, skipped: Skipped) -> Prepared:
        """Prepare the readable images, and record the unreadable ones found on the way."""
        skipped.read()  # another process may have written it in the meantime
        skipped.refresh()
        unfinished: list[Builder] = []
        while True:
            try:
                ready = self.prepare(skipped.rest, unfinished[-1] if unfinished else None)
                break
            except UnreadableError as error:
                skipped.add(error.found)
                unfinished.append(error.builder)
            except DiskFullError:
                # The images decoded for the whole dataset take space too: decode again without them.
                if not unfinished:
                    raise
                _discard(unfinished)
        _discard(unfinished)
        return ready


def _discard(builders: list[Builder]) -> None:
    while builders:
        builder = builders.pop()
        with exclusive(builder.directory / "lock"):
            if not _is_complete(builder.directory):
                builder.discard()


def _directory(dataset: Dataset, size: int, cache_root: Path) -> Path:
    return cache_root / f"{dataset.name}-{dataset.digest[:12]}-{size}"


def _is_complete(directory: Path) -> bool:
    return (directory / "meta.json").is_file()


def _open(dataset: Dataset, size: int, directory: Path) -> Prepared:
    meta = _read_meta(directory)
    if meta.get("format") != FORMAT:
        raise _damaged(directory, f"format {meta.get('format')} instead of {FORMAT}")
    if meta["dataset_digest"] != dataset.digest:
        raise _damaged(directory, "it belongs to another dataset")
    for split in SPLITS:
        file, count = directory / f"{split}.u8", len(getattr(dataset, split))
        found = file.stat().st_size if file.is_file() else 0
        if found != count * 3 * size * size:
            raise _damaged(directory, f"{file.name} has {found:,} bytes for {count:,} images")
    return Prepared(dataset, size, meta["digest"], directory)


def _read_meta(directory: Path) -> dict[str, Any]:
    try:
        return json.loads((directory / "meta.json").read_text())
    except (OSError, ValueError) as error:
        raise _damaged(directory, f"meta.json: {error}") from None


def _damaged(directory: Path, what: str) -> UserError:
    return UserError(f"cache {directory} is damaged: {what}; remove the folder and prepare again")
