"""Decode image files into the cache; the code of a decoding process.

It imports only NumPy and Pillow, so that a process starts fast.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

RESIZE = "PIL bilinear, antialiased"

Place = tuple[Path, int]
"""A cache file and the first byte of an image in it."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive images of a split, and where their pixels go.

    Attributes:
        split: "train" or "test".
        number: position among the split's chunks.
        paths: n image files.
        size: side S of the resized images.
        file: the cache file.
        offset: byte at which the first image starts.
        known: for each image, the (file, byte) of pixels that are decoded already, or None.
    """

    split: str
    number: int
    paths: tuple[Path, ...]
    size: int
    file: Path
    offset: int
    known: tuple[Place | None, ...]


@dataclass(frozen=True)
class Decoded:
    """The result of a chunk.

    Attributes:
        chunk: the chunk.
        sha256: of its pixels, hexadecimal; empty when an image could not be read.
        unreadable: (file, reason) of each such image.
    """

    chunk: Chunk
    sha256: str
    unreadable: tuple[tuple[Path, str], ...]


def load_image(path: Path, size: int) -> NDArray[np.uint8]:
    """Read one image.

    The image is rotated by its EXIF orientation and converted to RGB (from grey, palette, CMYK; 16-bit grey
    keeps the upper byte; transparency is dropped). It is then resized to a square without keeping the aspect
    ratio, as `torchvision.transforms.Resize((S, S))` does on a Pillow image: bilinear, antialiased.

    Args:
        path: any file that Pillow reads.
        size: side S in pixels.

    Returns:
        (3, S, S) uint8, RGB.

    Raises:
        OSError, SyntaxError, ValueError: Pillow's errors on a damaged file.
    """
    with Image.open(path) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):
            grey = np.clip(np.asarray(image), 0, 65535).astype(np.uint16) >> 8
            image = Image.fromarray(grey.astype(np.uint8))
        image.info.pop("transparency", None)  # it is dropped; with it Pillow would warn
        image = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


def reason_unreadable(path: Path, error: Exception) -> str:
    """Why `load_image` failed on an image, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        with suppress(OSError):
            if not path.stat().st_size:
                return "empty file"
        return "not an image"
    system = error.strerror if isinstance(error, OSError) else None
    reason = system or str(error).replace(str(path), path.name).strip() or type(error).__name__
    return reason.splitlines()[0]


def decode_chunk(chunk: Chunk) -> Decoded:
    """Read a chunk's images, write them to the cache file and flush it to the disk.

    If an image of the chunk cannot be read, nothing is written.

    Raises:
        OSError: the cache file cannot be written, for instance because the disk is full.
    """
    shape = (3, chunk.size, chunk.size)
    pixels = np.empty((len(chunk.paths), *shape), dtype=np.uint8)
    unreadable = []
    for k, (path, place) in enumerate(zip(chunk.paths, chunk.known, strict=True)):
        if place is not None:
            count = pixels[k].size
            pixels[k] = np.fromfile(place[0], np.uint8, count, offset=place[1]).reshape(shape)
            continue
        try:
            pixels[k] = load_image(path, chunk.size)
        # Pillow's plugins raise many kinds, such as struct.error and SyntaxError.
        except Exception as error:
            unreadable.append((path, reason_unreadable(path, error)))
    if unreadable:
        return Decoded(chunk, "", tuple(unreadable))
    with open(chunk.file, "r+b", buffering=0) as file:
        file.seek(chunk.offset)
        view = pixels.data.cast("B")
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())
    return Decoded(chunk, hashlib.sha256(pixels.data).hexdigest(), ())


def chunks_of(
    split: str,
    paths: Sequence[Path],
    size: int,
    file: Path,
    images_per_chunk: int,
    known: Sequence[Place | None],
) -> list[Chunk]:
    """Divide a split into chunks.

    Args:
        split: "train" or "test".
        paths: N image files.
        size: side of the resized images in pixels.
        file: the cache file.
        images_per_chunk: images of each chunk but the last.
        known: N entries, see `Chunk.known`.
    """
    bytes_per_image = 3 * size * size
    chunks = []
    for start in range(0, len(paths), images_per_chunk):
        part = slice(start, start + images_per_chunk)
        chunks.append(
            Chunk(
                split,
                start // images_per_chunk,
                tuple(paths[part]),
                size,
                file,
                start * bytes_per_image,
                tuple(known[part]),
            )
        )
    return chunks


def serve(ignored: Iterable[int]) -> None:
    """Decode pickled chunks from standard input until it is closed; `pool.decode` starts this.

    The pipe is closed whenever the parent process ends, which ends this process too.

    Args:
        ignored: numbers of the signals to ignore. The parent handles stop signals; SLURM sends them to every
            process of a step.
    """
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    orders, answers = os.fdopen(0, "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of a library must not mix with the answers
    while True:
        try:
            chunk = pickle.load(orders)
        except EOFError:
            return
        answer: Decoded | OSError
        try:
            answer = decode_chunk(chunk)
        except OSError as error:
            answer = error
        pickle.dump(answer, answers)
        answers.flush()
