"""The cache of resized images: decoded once, then read through a memory map.

`<cache root>/<name>-<first 12 digits of the digest>-<size>/` holds `train.u8` and `test.u8`, (N, 3, S, S)
uint8 RGB, `sources.npy`, the SHA-256 of each picture's file, and `meta.json`. The digest is over names and
labels, the bytes of the pictures, the rule that decodes them and the size; paths are not in it. So a finished
cache never changes: other pictures make another cache, which takes over the pixels of those that are equal,
and a folder with the same pictures shares it. `benchmarks.data.cache.sources` remembers the files' hashes.

An unfinished cache lies in `<name>-<digits of labels>-<digits of paths>-<size>.part/`, with one marker in
`chunks/` for each finished chunk, written after the chunk's pixels are on the disk: when a call is killed at
any moment, the next call continues its work. When all is done the folder gets its name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.data.cache import folders
from benchmarks.data.cache.build import (
    FORMAT,
    MARKERS,
    SPLITS,
    Builder,
    Progress,
    UnreadableError,
    content_digest,
    named,
)
from benchmarks.data.cache.decode import pixel_limit
from benchmarks.data.cache.skipped import Skipped
from benchmarks.data.cache.sources import Sources, digest_of
from benchmarks.data.dataset import Dataset
from benchmarks.data.disk import DiskFullError, exclusive
from benchmarks.provenance import cores
from methods.errors import UserError
from results.files import fsync_directory
from results.text import listed

if TYPE_CHECKING:
    import torch

CHUNK = 256
"""Images per chunk."""
NAMED = 20
"""Changed pictures that a message names."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A dataset whose images are in the cache.

    Attributes:
        dataset: its names and labels.
        size: side S of the images in pixels.
        digest: SHA-256 over names, labels, bytes of the pictures, decoding and size, hexadecimal.
        directory: folder of the cache.
        skipped: (id, reason) of the unreadable images that `dataset` is without.
        notes: remarks on the pictures, such as those that are in train and in test.
        manifest: file that remembers the pictures' hashes, and the SHA-256 over these; None where the images
            were not prepared from files.
    """

    dataset: Dataset
    size: int
    digest: str
    directory: Path
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    manifest: tuple[Path, str] | None = None

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
        meta = folders.read_meta(self.directory)
        total = len(self.train) + len(self.test)
        done = 0
        for split in SPLITS:
            pixels = np.asarray(self.train if split == "train" else self.test)
            for k, expected in enumerate(meta["chunks"][split]):
                part = pixels[k * meta["chunk"] : (k + 1) * meta["chunk"]]
                if hashlib.sha256(part.data).hexdigest() != expected:
                    raise folders.DamagedCacheError(self.directory, f"{split}.u8 has changed on the disk")
                done += len(part)
                if progress is not None:
                    progress(done, total)
        if done != total:
            what = f"meta.json has hashes of {done:,} of {total:,} images"
            raise folders.DamagedCacheError(self.directory, what)

    def verify_sources(self, workers: int | None = None, progress: Progress | None = None) -> None:
        """Hash every picture again, whatever its size and times, and compare with those of the cache.

        Raises:
            UserError: pictures differ or are missing; the message counts and names them. The hashes are
                remembered, so that the next `prepare` decodes these pictures again.
        """
        sources = Sources(self.dataset, self.directory.parent)
        sources.verify(workers or min(cores(), 16), progress)
        expected = folders.hashes_of(self.directory, folders.read_meta(self.directory))
        wrong = sources.known & (sources.hashes != expected).any(axis=1)
        parts = []
        for what, where in (("changed", wrong), ("missing or unreadable", ~sources.known)):
            names = [sources.paths[k] for k in np.flatnonzero(where)]
            if names:
                parts.append(f"{len(names)} {what}: {listed(names, NAMED)}")
        if sources.known.all():
            sources.write()
        elif wrong.any():
            sources.forget()
        if parts:
            raise UserError(
                f"dataset {self.dataset.name!r}: of {len(sources.paths)} pictures, {'; '.join(parts)}; the "
                f"cache {self.directory} is of other ones; prepare again, and runs get another identity"
            )

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would contain all pixels; the receiver opens its own map.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def _map(self, split: str) -> np.memmap:
        count = len(getattr(self.dataset, split))
        shape = (count, 3, self.size, self.size)
        path = self.directory / f"{split}.u8"
        try:
            return np.memmap(path, dtype=np.uint8, mode="r", shape=shape)
        except FileNotFoundError:  # removed since it was opened: runs that have mapped it go on
            raise UserError(
                f"{path} is gone: the cache of {self.dataset.name} was removed while runs needed it; run "
                "again, which prepares it anew"
            ) from None
        except ValueError:  # it is shorter than it was
            raise folders.DamagedCacheError(self.directory, f"{split}.u8 is too short") from None


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
    ready = caches.open(skipped.rest)[1] if skipped.is_current() else None
    if ready is None:
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


def find(dataset: Dataset, size: int, cache_root: Path, *, skip_bad: bool = False) -> Prepared | None:
    """The finished cache that `prepare` would open; None where it would decode, or hash pictures first.

    Writes nothing. Of the pictures only size and times are looked at, and the content of those that were
    written within two seconds of the time when they were last hashed.
    """
    caches = _Caches(size, cache_root, min(cores(), 16), None, lambda line: None)
    if not skip_bad:
        return caches.find(dataset)
    skipped = Skipped(dataset, cache_root)
    if not skipped.is_current():
        return None
    ready = caches.find(skipped.rest)
    return ready and dataclasses.replace(ready, skipped=skipped.reasons)


def is_prepared(dataset: Dataset, size: int, cache_root: Path, *, skip_bad: bool = False) -> bool:
    """Whether `find` finds a cache; a damaged one counts."""
    images = dataset
    if skip_bad:
        skipped = Skipped(dataset, cache_root)
        images = skipped.rest if skipped.is_current() else dataset
    digest = known_digest(images, size, cache_root)
    return digest is not None and folders.is_complete(cache_root / folders.name_of(images, size, digest))


def known_digest(dataset: Dataset, size: int, cache_root: Path) -> str | None:
    """The digest that the prepared dataset has or would have; None where a picture's hash is not known.

    Writes nothing, as `find`. Any size is known once one size was prepared.
    """
    sources = Sources(dataset, cache_root)
    sources.confirm()
    found = sources.digest()
    return None if found is None else content_digest(dataset, size, found)


@dataclass(frozen=True)
class _Caches:
    """The caches of one size, and how to fill them; see `prepare` for the fields."""

    size: int
    root: Path
    workers: int
    progress: Progress | None
    announce: Callable[[str], None]

    def find(self, dataset: Dataset) -> Prepared | None:
        """The finished cache of the pictures, if their hashes are remembered; writes nothing."""
        sources = Sources(dataset, self.root)
        sources.confirm(self.workers)
        return self._opened(sources)

    def open(self, dataset: Dataset) -> tuple[Sources, Prepared | None]:
        """The pictures, and their finished cache if there is a sound one."""
        sources, ready = Sources(dataset, self.root), None
        self._hash(sources)
        with suppress(folders.DamagedCacheError):  # `prepare` says so, and makes it again
            ready = self._opened(sources)
        if ready is not None:
            sources.write()
            shutil.rmtree(ready.directory / MARKERS, ignore_errors=True)  # killed before the clean-up
        return sources, ready

    def prepare(self, dataset: Dataset, donor: Builder | None = None) -> Prepared:
        """Prepare all images of a dataset; `donor` is an unfinished cache to copy images from."""
        sources, ready = self.open(dataset)
        if ready is not None:
            return ready
        part = self.root / f"{sources.label}-{self.size}.part"
        with exclusive(part / "lock"):
            if sources.digest() is None:  # who held the lock may have remembered them
                sources.look()
                self._hash(sources)
            try:
                ready = self._opened(sources)
            except folders.DamagedCacheError as error:
                self.announce(folders.put_aside(error))
            if ready is None:
                return self._build(sources, part, donor)
            shutil.rmtree(part, ignore_errors=True)
            return ready

    def _hash(self, sources: Sources) -> None:
        """Hash pictures that are not known, if a finished cache may be of them, or hold some of them."""
        sources.confirm(self.workers)
        if sources.digest() is None and any(folders.of_name(self.root, sources.dataset.name, self.size)):
            sources.complete(self.workers, self.progress)

    def _build(self, sources: Sources, part: Path, donor: Builder | None) -> Prepared:
        name = sources.dataset.name
        shelf = folders.shelf(self.root, name, self.size, sources.hashes[sources.known])
        for line in (folders.outdated(self.root, sources.dataset, self.size), self._changed(sources)):
            if line:
                self.announce(line)
        builder = Builder(sources, self.size, part, CHUNK, self.progress, self.announce, shelf, donor)
        builder.build(self.workers)
        # The hashes first: whoever waits for the lock finds the cache by them.
        sources.write()
        digest = sources.digest()
        assert digest is not None
        directory = self._directory(sources.dataset, digest)
        if folders.is_complete(directory):  # the same pictures in another folder were faster
            shutil.rmtree(part, ignore_errors=True)
        else:
            with suppress(OSError):  # told below
                os.replace(part, directory)
            fsync_directory(self.root)
            shutil.rmtree(directory / MARKERS, ignore_errors=True)
        ready = self._opened(sources)
        if ready is None:
            raise UserError(
                f"{directory}: a folder is in the way of the finished cache {part}; remove it and run again"
            )
        return ready

    def _changed(self, sources: Sources) -> str:
        """A remark on pictures that have been replaced; "" where none has."""
        where = sources.replaced()
        if not where or sources.before is None:
            return ""
        earlier = self._directory(sources.dataset, digest_of(sources.before))
        kept = f"; the cache of the earlier ones stays for the runs that read it: {earlier}"
        return (
            f"{sources.dataset.name}: {len(where)} of {len(sources.paths)} pictures are not those of last "
            f"time, such as {sources.paths[where[0]]}; the runs get another identity"
            f"{kept if folders.is_complete(earlier) else ''}"
        )

    def _directory(self, dataset: Dataset, sources: str) -> Path:
        return self.root / folders.name_of(dataset, self.size, content_digest(dataset, self.size, sources))

    def _opened(self, sources: Sources) -> Prepared | None:
        digest = sources.digest()
        if digest is None:
            return None
        directory = self._directory(sources.dataset, digest)
        if not folders.is_complete(directory):
            return None
        ready = _open(sources.dataset, self.size, directory, digest)
        return dataclasses.replace(ready, notes=sources.duplicates(), manifest=(sources.file, digest))

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
            builder.discard()


def _open(dataset: Dataset, size: int, directory: Path, sources: str) -> Prepared:
    meta = folders.read_meta(directory)
    if meta.get("format") != FORMAT:
        what = f"format {meta.get('format')} instead of {FORMAT}"  # of another version, and whole there
        raise UserError(f"cache {directory} has {what}; remove the folder and prepare again")
    if meta["digest"] != content_digest(dataset, size, sources):
        raise folders.DamagedCacheError(directory, "it belongs to another dataset")
    for split in SPLITS:
        file, count = directory / f"{split}.u8", len(getattr(dataset, split))
        found = file.stat().st_size if file.is_file() else 0
        if found != count * 3 * size * size:
            what = f"{file.name} has {found:,} bytes for {count:,} images"
            raise folders.DamagedCacheError(directory, what)
    return Prepared(dataset, size, meta["digest"], directory)
