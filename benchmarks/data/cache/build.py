"""Fill one cache folder under its working name; `benchmarks.data.cache.prepared` describes its files."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from benchmarks.data.cache.decode import DECODING, RESIZE, Chunk, Place, chunks_of
from benchmarks.data.cache.pool import decode
from benchmarks.data.cache.source import Source
from benchmarks.data.cache.sources import Sources
from benchmarks.data.dataset import Dataset
from benchmarks.data.disk import FULL, DiskFullError, amount, reserve, unallocated
from methods.errors import UserError
from results.files import atomic_write_bytes, atomic_write_json, fsync_directory, remove_temporaries
from results.text import listed

FORMAT = 2
HASHES = "sources.npy"
"""Name of the file with the SHA-256 of the pictures, (N, 32) uint8, training images first."""
MARKERS = "chunks"
SPLITS = ("train", "test")
NAMED = 50
"""Unreadable images that an error names; all of them are listed in a file in the cache folder."""

Progress = Callable[[int, int], None]


class UnreadableError(UserError):
    """Images of a dataset cannot be read.

    Attributes:
        builder: the builder that found them; its finished chunks are kept.
        found: (file, reason) of each.
    """

    def __init__(self, builder: Builder, found: Sequence[tuple[Path, str]], message: str) -> None:
        super().__init__(message)
        self.builder, self.found = builder, tuple(found)


class Builder:
    """Fills one cache folder; the caller holds its lock.

    Args:
        sources: the images, and which of their hashes are known.
        size: side of the resized images in pixels.
        directory: the folder.
        images_per_chunk: images that are decoded, hashed and marked as finished together.
        progress: called with (images done, images in total).
        announce: called with a line about the disk space needed before anything is decoded.
        shelf: where the pixels of pictures lie in finished caches of this size, by hash.
        donor: an unfinished cache of the same size, whose finished images are copied.
    """

    def __init__(
        self,
        sources: Sources,
        size: int,
        directory: Path,
        images_per_chunk: int,
        progress: Progress | None,
        announce: Callable[[str], None],
        shelf: Mapping[bytes, Place],
        donor: Builder | None = None,
    ) -> None:
        dataset = sources.dataset
        self.sources, self.dataset, self.size, self.directory = sources, dataset, size, directory
        self.images_per_chunk = images_per_chunk
        self.markers = directory / MARKERS
        self.progress, self.announce = progress, announce
        self.files = {split: directory / f"{split}.u8" for split in SPLITS}
        self.first = {"train": 0, "test": len(dataset.train)}
        finished = donor.finished() if donor is not None else {}
        self.chunks = {
            split: chunks_of(
                split,
                getattr(dataset, split).paths,
                size,
                self.files[split],
                images_per_chunk,
                [
                    self._known(self.first[split] + k, finished.get((split, name)), shelf)
                    for k, name in enumerate(getattr(dataset, split).ids)
                ],
            )
            for split in SPLITS
        }
        self.total = len(dataset.train) + len(dataset.test)
        self.done = 0

    def build(self, workers: int) -> None:
        """Decode the unfinished chunks, then write `meta.json`.

        Args:
            workers: decoding processes; 1 decodes in this process.

        Raises:
            UnreadableError: images cannot be read; the finished chunks are kept.
            DiskFullError: too little disk space; the unfinished cache is removed.
            UserError: the folder cannot be written; finished parts are kept.
        """
        try:
            self._build(workers)
        except OSError as error:
            if error.errno in FULL:
                raise self._full(os.strerror(error.errno)) from None
            raise UserError(
                f"{self.directory}: the cache cannot be written: {error.strerror or error}; "
                "finished parts are kept, run again when that is mended"
            ) from None

    def finished(self) -> dict[tuple[str, str], tuple[Place, Source]]:
        """Where the pixels of finished images are: (split, id) to their place, and the file they are of."""
        found = {}
        for split, chunks in self.chunks.items():
            ids = getattr(self.dataset, split).ids
            for chunk in chunks:
                first = chunk.number * self.images_per_chunk
                for k, source in enumerate(self._marked(chunk)[1], first):
                    found[split, ids[k]] = (chunk.file, k * 3 * self.size**2), source
        return found

    def _known(
        self, k: int, finished: tuple[Place, Source] | None, shelf: Mapping[bytes, Place]
    ) -> Place | None:
        """Where the pixels of a picture lie already."""
        if self.sources.known[k]:
            place = shelf.get(self.sources.hashes[k].tobytes())
            if place is not None:
                return place
        if finished is None:
            return None
        self.sources.record(k, finished[1])
        return finished[0]

    def discard(self) -> None:
        """Remove the folder, with the lock that the caller holds."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _build(self, workers: int) -> None:
        self._layout()
        hashes: dict[tuple[str, int], str] = {}
        pending = []
        for chunk in (chunk for split in SPLITS for chunk in self.chunks[split]):
            found, sources = self._marked(chunk)
            if found:
                self._record(chunk, sources)
                hashes[chunk.split, chunk.number] = found
                self.done += len(chunk.paths)
            else:
                pending.append(chunk)
        self._make_room(pending)
        self._report()
        unreadable: list[tuple[Path, str]] = []
        # Closed at once on an error: no process may write into a folder that is removed.
        with closing(decode(pending, workers)) as results:
            for decoded in results:
                unreadable += decoded.unreadable
                if decoded.sha256:
                    chunk = decoded.chunk
                    self._record(chunk, decoded.sources)
                    self._mark(chunk, decoded.sha256)
                    hashes[chunk.split, chunk.number] = decoded.sha256
                self.done += len(decoded.chunk.paths)
                self._report()
        if unreadable:
            raise self._unreadable(unreadable)
        self._finish(hashes)

    def _layout(self) -> None:
        """Create the files in full length; markers are valid only for the same files."""
        self.markers.mkdir(exist_ok=True)
        for split, file in self.files.items():
            length = len(getattr(self.dataset, split)) * 3 * self.size**2
            if not file.is_file() or file.stat().st_size != length:
                for chunk in self.chunks[split]:
                    self._marker(chunk).unlink(missing_ok=True)
                with open(file, "wb") as stream:
                    stream.truncate(length)
        remove_temporaries(self.markers)
        fsync_directory(self.directory)

    def _marker(self, chunk: Chunk) -> Path:
        # The name has the number of images: with another chunk length no marker matches.
        return self.markers / f"{chunk.split}-{chunk.number:06d}-{self.images_per_chunk}"

    def _mark(self, chunk: Chunk, pixels: str) -> None:
        """Write a chunk's marker: the hash of its pixels, and the files that they are of."""
        sources = [self.sources.source(k) for k in self._positions(chunk)]
        atomic_write_bytes(self._marker(chunk), json.dumps({"pixels": pixels, "sources": sources}).encode())

    def _marked(self, chunk: Chunk) -> tuple[str, list[Source]]:
        """What a chunk's marker says; ("", []) unless all its pictures are those that were decoded."""
        try:
            found = json.loads(self._marker(chunk).read_bytes())
            pixels = str(found["pixels"])
            recorded = [Source(tuple(stamp), sha256, young) for stamp, sha256, young in found["sources"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return "", []
        if len(pixels) != 64 or len(recorded) != len(chunk.paths):
            return "", []
        sources = []
        for source, path in zip(recorded, chunk.paths, strict=True):
            now = source.confirmed(path)
            if now is None:
                return "", []
            sources.append(now)
        return pixels, sources

    def _positions(self, chunk: Chunk) -> range:
        """Positions of a chunk's images among all pictures."""
        first = self.first[chunk.split] + chunk.number * self.images_per_chunk
        return range(first, first + len(chunk.paths))

    def _record(self, chunk: Chunk, sources: Sequence[Source | None]) -> None:
        for k, source in zip(self._positions(chunk), sources, strict=True):
            if source is not None:
                self.sources.record(k, source)

    def _make_room(self, pending: Sequence[Chunk]) -> None:
        """Announce the disk space needed, and reserve it before the first image is decoded."""
        per_image = 3 * self.size**2
        missing = sum(len(chunk.paths) for chunk in pending) * per_image
        pixels = min(missing, sum(map(unallocated, self.files.values())))
        need = pixels + 4096 * (len(pending) + 4)  # markers and meta.json, a block each
        free = shutil.disk_usage(self.directory).free
        self.announce(
            f"cache of {self.total:,} images at {self.size} px: {amount(self.total * per_image)} "
            f"in {self.directory.parent}, {amount(pixels)} of it to be added, {amount(free)} free"
        )
        if need > free:
            raise self._full(f"{amount(need)} more are needed, {amount(free)} are left")
        for file in self.files.values():
            reserve(file)

    def _full(self, why: str) -> DiskFullError:
        self.discard()
        return DiskFullError(
            f"{self.directory}: the disk is too full for the cache: {why}; the unfinished cache is "
            "removed; make room or choose another folder for the cache, and run again"
        )

    def _unreadable(self, found: list[tuple[Path, str]]) -> UnreadableError:
        found.sort()
        file = self.directory / "unreadable.txt"
        atomic_write_bytes(file, "".join(f"{p}\t{reason}\n" for p, reason in found).encode())
        return UnreadableError(
            self,
            found,
            (
                f"dataset {self.dataset.name!r}: {len(found)} of {self.total} images cannot be read: "
                f"{named(found, NAMED)}; replace them and run again, or leave them out with "
                f"`prepare --skip-bad` (skip_bad = true in a grid); the list is in {file}"
            ),
        )

    def _finish(self, hashes: dict[tuple[str, int], str]) -> None:
        chunks = {split: [hashes[split, c.number] for c in self.chunks[split]] for split in SPLITS}
        pixels = hashlib.sha256("\n".join(chunks["train"] + ["-"] + chunks["test"]).encode())
        sources = self.sources.digest()
        assert sources is not None  # each chunk is finished
        buffer = io.BytesIO()
        np.save(buffer, self.sources.hashes)
        atomic_write_bytes(self.directory / HASHES, buffer.getvalue())
        meta: dict[str, Any] = {
            "format": FORMAT,
            "dataset": self.dataset.name,
            "dataset_digest": self.dataset.digest,
            "size": self.size,
            "decoding": DECODING,
            "resize": RESIZE,
            "pillow": PIL.__version__,
            "train": len(self.dataset.train),
            "test": len(self.dataset.test),
            "chunk": self.images_per_chunk,
            "chunks": chunks,
            "pixels": pixels.hexdigest(),
            "sources": sources,
            "digest": content_digest(self.dataset, self.size, sources),
        }
        atomic_write_json(self.directory / "meta.json", meta)
        with suppress(FileNotFoundError):
            os.unlink(self.directory / "unreadable.txt")

    def _report(self) -> None:
        if self.progress is not None:
            self.progress(self.done, self.total)


def content_digest(dataset: Dataset, size: int, sources: str) -> str:
    """The digest of a prepared dataset, hexadecimal.

    Args:
        dataset: names and labels.
        size: side of the images in pixels.
        sources: SHA-256 over the hashes of the pictures' bytes.
    """
    return hashlib.sha256(f"{dataset.digest} {sources} {DECODING} {size}".encode()).hexdigest()


def named(found: Sequence[tuple[object, str]], most: int) -> str:
    """The first `most` images with their reasons, for a message."""
    return listed([f"{image} ({reason})" for image, reason in found], most)
