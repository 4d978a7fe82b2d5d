"""The images that a user names, and their pixels: those that the cache of a dataset would hold."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.cache.decode import Chunk
from benchmarks.data.cache.pool import decode
from methods.errors import UserError

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".heic", ".heif", ".avif", ".jp2"),
)
"""What counts as an image in a folder; a file that is named may have any."""
LISTS = (".txt", ".list")
CHUNK = 32
"""Images of one order to a decoding process."""
WINDOW_BYTES = 256 << 20
"""Decoded pixels that lie on the disk at a time, twice: while some are used the next are decoded."""


@dataclass
class Found:
    """The images that were named.

    Attributes:
        paths: as they were named, or below a named folder; each once.
        remarks: what was left out, a line each.
    """

    paths: list[Path] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def find_images(words: Sequence[str]) -> Found:
    """The images of files, folders (with all below them), patterns and lists.

    A list is a text file (.txt, .list) with a path a line, relative to its folder; empty lines are none.

    Raises:
        UserError: something named does not exist, or has no image.
    """
    found = Found()
    every: list[Path] = []
    for word in words:
        path = Path(word)
        if path.is_dir():
            every += _of_folder(path, found)
        elif path.suffix.lower() in LISTS and path.is_file():
            every += _of_list(path)
        elif path.is_file():
            every.append(path)
        elif glob.has_magic(word):
            matching = [Path(match) for match in sorted(glob.glob(word, recursive=True))]
            files = [match for match in matching if not match.is_dir()]
            if not files:
                raise UserError(f"{word}: no file matches")
            every += files
        else:
            raise UserError(f"{word}: no such file or folder")
    found.paths = list(dict.fromkeys(every))
    if len(found.paths) < len(every):
        found.remarks.append(f"{len(every) - len(found.paths)} images were named more than once")
    return found


def _of_folder(folder: Path, found: Found) -> list[Path]:
    images, others = [], 0
    for place, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            if os.path.splitext(name)[1].lower() in SUFFIXES:
                images.append(Path(place) / name)
            else:
                others += 1
    if not images:
        raise UserError(f"{folder}: no image in it (names end in .jpg, .png, .webp, .tif and the like)")
    if others:
        found.remarks.append(f"{folder}: {others} files are left out, whose names are not those of images")
    return images


def _of_list(file: Path) -> list[Path]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text at byte {error.start}") from None
    paths = [file.parent / line.strip() for line in lines if line.strip()]
    if not paths:
        raise UserError(f"{file}: the list names no image")
    return paths


class Pixels:
    """Decodes images in processes, a window ahead of who uses them.

    Args:
        paths: the images.
        size: side S in pixels.
        workers: decoding processes; 1 decodes in this one.

    Attributes:
        unreadable: (position, reason) of images that could not be read, so far.
    """

    def __init__(self, paths: Sequence[Path], size: int, workers: int) -> None:
        self.paths, self.size, self.workers = paths, size, workers
        self.unreadable: list[tuple[int, str]] = []

    def batches(self, count: int) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
        """Batches of readable images in their order.

        Args:
            count: images of a batch, but the last.

        Yields:
            n positions and (n, 3, S, S) uint8 pixels.
        """
        places: list[int] = []
        left = np.empty((0, 3, self.size, self.size), dtype=np.uint8)
        for start, pixels, reasons in self._windows(max(count, WINDOW_BYTES // (3 * self.size**2))):
            self.unreadable += sorted((start + k, reason) for k, reason in reasons.items())
            good = [k for k in range(len(pixels)) if k not in reasons]
            places += [start + k for k in good]
            left = np.concatenate([left, pixels[good] if reasons else pixels])
            whole = len(places) if start + len(pixels) == len(self.paths) else len(places) // count * count
            for first in range(0, whole, count):
                last = min(first + count, whole)
                yield places[first:last], left[first:last]
            places, left = places[whole:], left[whole:]

    def _windows(self, most: int) -> Iterator[tuple[int, NDArray[np.uint8], dict[int, str]]]:
        starts = range(0, len(self.paths), most)
        # A second thread only waits for other processes: Pillow is not used in two threads of one.
        ahead: Callable[[int], Future[tuple[NDArray[np.uint8], dict[int, str]]]]
        with ThreadPoolExecutor(1) as thread:
            ahead = lambda start: thread.submit(self._window, self.paths[start : start + most])  # noqa: E731
            coming = ahead(0) if self.workers > 1 else None
            for start in starts:
                if coming is None:
                    yield start, *self._window(self.paths[start : start + most])
                    continue
                ready = coming.result()
                coming = ahead(start + most) if start + most < len(self.paths) else None
                yield start, *ready

    def _window(self, paths: Sequence[Path]) -> tuple[NDArray[np.uint8], dict[int, str]]:
        """(n, 3, S, S) uint8 pixels, and by position why an image has none."""
        image = 3 * self.size**2
        reasons: dict[int, str] = {}
        with tempfile.TemporaryDirectory(prefix="ssmll-pixels-") as folder:
            file = Path(folder) / "pixels.u8"
            with file.open("wb") as stream:
                stream.truncate(image * len(paths))
            alone: list[Chunk] = []
            for answer in decode(
                [self._chunk(file, paths, k, CHUNK) for k in range(0, len(paths), CHUNK)], self.workers
            ):
                if answer.unreadable:  # nothing was written: each image by itself
                    first = answer.chunk.number
                    alone += [self._chunk(file, paths, first + k, 1) for k in range(len(answer.chunk.paths))]
            for answer in decode(alone, self.workers):
                if answer.unreadable:
                    reasons[answer.chunk.number] = answer.unreadable[0][1]
            pixels = np.fromfile(file, dtype=np.uint8)
        return pixels.reshape(len(paths), 3, self.size, self.size), reasons

    def _chunk(self, file: Path, paths: Sequence[Path], first: int, count: int) -> Chunk:
        some = tuple(paths[first : first + count])
        return Chunk("test", first, some, self.size, file, first * 3 * self.size**2, (None,) * len(some))
