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
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
from numpy.typing import ArrayLike, NDArray

from benchmarks.data.decode import RESIZE, Chunk, chunks_of
from benchmarks.data.locks import exclusive
from benchmarks.data.pool import decode
from benchmarks.data.types import Dataset
from methods.errors import UserError
from results.files import atomic_write_bytes, atomic_write_json, fsync_directory, remove_temporaries

if TYPE_CHECKING:
    import torch

FORMAT = 1
CHUNK = 256
"""Images per chunk; a constant, because the digest is built from the chunks' hashes."""
SPLITS = ("train", "test")
NAMED = 50
"""Unreadable images that an error names; all of them are written to a file beside the cache."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A dataset whose images are in the cache.

    Attributes:
        dataset: its names and labels.
        size: side S of the images in pixels.
        digest: SHA-256 over the dataset's digest and all pixels, hexadecimal.
        directory: folder of the cache.
    """

    dataset: Dataset
    size: int
    digest: str
    directory: Path

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
) -> Prepared:
    """Decode and resize a dataset's images into the cache, or find them there.

    Several processes may call this at once: one works, the others wait for it.

    Args:
        dataset: the images.
        size: side of the square images in pixels.
        cache_root: folder of all caches.
        workers: decoding processes; None is one for each core of this process, at most 16; 1
            decodes in this process.
        progress: called with (images done, images in total).

    Raises:
        UserError: images that cannot be read (all named), too little disk space, a damaged cache.
    """
    if size < 1:
        raise UserError(f"image size is {size}; it must be at least 1 pixel")
    directory = cache_root / f"{dataset.name}-{dataset.digest[:12]}-{size}"
    if not (directory / "meta.json").is_file():
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{directory}: cannot be created: {error.strerror}") from None
        with exclusive(directory / "lock"):
            if not (directory / "meta.json").is_file():
                _Builder(dataset, size, directory, progress).build(workers or _cores())
    elif (directory / "chunks").exists():  # killed between the last file and the clean-up
        with exclusive(directory / "lock"):
            shutil.rmtree(directory / "chunks", ignore_errors=True)
    return _open(dataset, size, directory)


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


class _Builder:
    """Fills one cache folder; the caller holds its lock."""

    def __init__(
        self, dataset: Dataset, size: int, directory: Path, progress: Progress | None
    ) -> None:
        self.dataset, self.size, self.directory = dataset, size, directory
        self.markers = directory / "chunks"
        self.progress = progress
        self.chunks = {
            split: chunks_of(split, getattr(dataset, split).paths, size,
                             directory / f"{split}.u8", CHUNK)
            for split in SPLITS
        }  # fmt: skip
        self.total = len(dataset.train) + len(dataset.test)
        self.done = 0

    def build(self, workers: int) -> None:
        self._layout()
        hashes: dict[tuple[str, int], str] = {}
        pending = []
        for chunk in (chunk for split in SPLITS for chunk in self.chunks[split]):
            found = self._marked(chunk)
            if found:
                hashes[chunk.split, chunk.number] = found
                self.done += len(chunk.paths)
            else:
                pending.append(chunk)
        self._check_space(pending)
        self._report()
        unreadable: list[tuple[Path, str]] = []
        try:
            for decoded in decode(pending, workers):
                unreadable += decoded.unreadable
                if decoded.sha256:
                    chunk = decoded.chunk
                    atomic_write_bytes(self._marker(chunk), f"{decoded.sha256}\n".encode())
                    hashes[chunk.split, chunk.number] = decoded.sha256
                self.done += len(decoded.chunk.paths)
                self._report()
        except OSError as error:
            raise UserError(
                f"{self.directory}: the cache cannot be written: {error.strerror or error}; "
                "finished parts are kept, run again after making room"
            ) from None
        if unreadable:
            raise self._unreadable(unreadable)
        self._finish(hashes)

    def _layout(self) -> None:
        """Make the files in full length; markers count only while the files are the same."""
        self.markers.mkdir(exist_ok=True)
        for split in SPLITS:
            file = self.directory / f"{split}.u8"
            length = len(getattr(self.dataset, split)) * 3 * self.size**2
            if not file.is_file() or file.stat().st_size != length:
                for chunk in self.chunks[split]:
                    self._marker(chunk).unlink(missing_ok=True)
                with open(file, "wb") as stream:
                    stream.truncate(length)
        remove_temporaries(self.markers)
        fsync_directory(self.directory)

    def _marker(self, chunk: Chunk) -> Path:
        # The number of images is in the name: with another chunk length no marker fits.
        return self.markers / f"{chunk.split}-{chunk.number:06d}-{CHUNK}"

    def _marked(self, chunk: Chunk) -> str:
        try:
            text = self._marker(chunk).read_text().strip()
        except OSError:
            return ""
        return text if len(text) == 64 else ""

    def _check_space(self, pending: Sequence[Chunk]) -> None:
        need = sum(len(chunk.paths) for chunk in pending) * 3 * self.size**2
        free = shutil.disk_usage(self.directory).free
        if need > free:
            raise UserError(
                f"{self.directory}: the cache needs {need / 2**30:.1f} GiB more, the disk has "
                f"{free / 2**30:.1f} GiB left; make room or choose another folder for the cache"
            )

    def _unreadable(self, found: list[tuple[Path, str]]) -> UserError:
        found.sort()
        file = self.directory / "unreadable.txt"
        atomic_write_bytes(file, "".join(f"{p}\t{reason}\n" for p, reason in found).encode())
        named = ", ".join(f"{path} ({reason})" for path, reason in found[:NAMED])
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        return UserError(
            f"dataset {self.dataset.name!r}: {len(found)} of {self.total} images cannot be read: "
            f"{named}{more}; replace them and run again (the list is in {file})"
        )

    def _finish(self, hashes: dict[tuple[str, int], str]) -> None:
        chunks = {split: [hashes[split, c.number] for c in self.chunks[split]] for split in SPLITS}
        pixels = hashlib.sha256("\n".join(chunks["train"] + ["-"] + chunks["test"]).encode())
        whole = hashlib.sha256(f"{self.dataset.digest} {pixels.hexdigest()}".encode())
        meta = {
            "format": FORMAT, "dataset": self.dataset.name, "dataset_digest": self.dataset.digest,
            "size": self.size, "resize": RESIZE, "pillow": PIL.__version__,
            "train": len(self.dataset.train), "test": len(self.dataset.test), "chunk": CHUNK,
            "chunks": chunks, "pixels": pixels.hexdigest(), "digest": whole.hexdigest(),
        }  # fmt: skip
        atomic_write_json(self.directory / "meta.json", meta)
        shutil.rmtree(self.markers, ignore_errors=True)
        with suppress(FileNotFoundError):
            os.unlink(self.directory / "unreadable.txt")

    def _report(self) -> None:
        if self.progress is not None:
            self.progress(self.done, self.total)


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
