"""The cache of resized images: decoded once, then read through a memory map.

`<cache root>/<name>-<first 12 digits of the dataset's digest>-<size>/` holds `train.u8` and
`test.u8`, (N, 3, S, S) uint8 RGB, and `meta.json`, which is written last: where it is, the cache is
complete. Until then `chunks/` holds one marker per finished chunk, written after the chunk's pixels
are on the disk, so that a call killed at any instant is continued by the next one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.data.cache.build import FORMAT, SPLITS, Builder, Progress, UnreadableError, named
from benchmarks.data.cache.skipped import Skipped
from benchmarks.data.dataset import Dataset
from benchmarks.data.locks import exclusive
from benchmarks.data.space import DiskFullError
from methods.errors import UserError

if TYPE_CHECKING:
    import torch

CHUNK = 256
"""Images per chunk; a constant, because the digest is built from the chunks' hashes."""


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
        import torch  # preparing a cache does without it

        pixels: NDArray[np.uint8] = np.asarray(self.train if split == "train" else self.test)
        positions = np.asarray(indices, dtype=np.int64)
        return torch.from_numpy(pixels[positions])

    def verify(self, progress: Progress | None = None) -> None:
        """Read every pixel and compare with the hashes taken when it was written.

        Raises:
            UserError: a chunk differs; the message names the file and what to do.
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
        # A pickled memory map would carry all its pixels along; the receiver opens its own.
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
    """Decode and resize a dataset's images into the cache, or find them there.

    Several processes may call this at once: one works, the others wait for it. A call that was
    killed is continued by the next one; a full disk is told before anything is decoded where the
    file system can reserve room, and leaves nothing of the cache behind.

    Args:
        dataset: the images.
        size: side of the square images in pixels.
        cache_root: folder of all caches.
        workers: decoding processes; None is one for each core of this process, at most 16; 1
            decodes in this process.
        progress: called with (images done, images in total).
        skip_bad: leave unreadable images out instead of failing. They are recorded beside the
            caches (`benchmarks.data.cache.skipped`) and the dataset without them gets a cache, and a
            digest, of its own.
        announce: gets one-line remarks: the disk need before anything is decoded, and what is left
            out.

    Raises:
        UserError: images that cannot be read (all named), too little disk space, a damaged cache.
    """
    if size < 1:
        raise UserError(f"image size is {size}; it must be at least 1 pixel")

    def whole(images: Dataset, donor: Builder | None = None) -> Prepared:
        directory = _directory(images, size, cache_root)
        if not (directory / "meta.json").is_file():
            with exclusive(directory / "lock"):
                if not (directory / "meta.json").is_file():
                    Builder(images, size, directory, CHUNK, progress, announce, donor).build(
                        workers or _cores()
                    )
        elif (directory / "chunks").exists():  # killed between the last file and the clean-up
            with exclusive(directory / "lock"):
                shutil.rmtree(directory / "chunks", ignore_errors=True)
        return _open(images, size, directory)

    if not skip_bad:
        return whole(dataset)
    skipped = Skipped(dataset, cache_root)
    # A finished cache is used without a lock: the folder may be one that is only read here.
    if skipped.is_current() and (_directory(skipped.rest, size, cache_root) / "meta.json").is_file():
        ready = whole(skipped.rest)
    else:
        with exclusive(skipped.lock):
            ready = _without_bad(skipped, whole)
            skipped.lock.unlink(missing_ok=True)
    if skipped.images:
        announce(
            f"{dataset.name}: {len(skipped.images)} of {len(dataset.train) + len(dataset.test)} "
            "images cannot be read and are left out: "
            f"{named([(i.path, i.reason) for i in skipped.images], 5)}; recorded in {skipped.file}"
        )
    return dataclasses.replace(ready, skipped=skipped.reasons)


def is_prepared(dataset: Dataset, size: int, cache_root: Path, *, skip_bad: bool = False) -> bool:
    """Whether `prepare` would find everything done."""
    images = dataset
    if skip_bad:
        skipped = Skipped(dataset, cache_root)
        images = skipped.rest if skipped.is_current() else dataset
    return (_directory(images, size, cache_root) / "meta.json").is_file()


def _without_bad(skipped: Skipped, whole: Callable[..., Prepared]) -> Prepared:
    """Prepare what can be read; what cannot is found on the way and recorded."""
    skipped.read()  # another process may have written it in the meantime
    skipped.refresh()
    unfinished: list[Builder] = []
    while True:
        try:
            ready = whole(skipped.rest, unfinished[-1] if unfinished else None)
            break
        except UnreadableError as error:
            skipped.add(error.found)
            unfinished.append(error.builder)
        except DiskFullError:
            # What was decoded for the whole dataset takes room too: decode again without it.
            if not unfinished:
                raise
            _discard(unfinished)
    _discard(unfinished)
    return ready


def _discard(builders: list[Builder]) -> None:
    while builders:
        builder = builders.pop()
        with exclusive(builder.directory / "lock"):
            if not (builder.directory / "meta.json").is_file():
                builder.discard()


def _directory(dataset: Dataset, size: int, cache_root: Path) -> Path:
    return cache_root / f"{dataset.name}-{dataset.digest[:12]}-{size}"


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


def _cores() -> int:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(allowed or 1, 16)
