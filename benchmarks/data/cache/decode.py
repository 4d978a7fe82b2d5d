"""Decode image files into the cache; the code of a decoding process.

It imports only NumPy and Pillow beside small modules, so that a process starts fast.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from benchmarks.data.cache.source import Source, read, stamp_of
from methods import kinds
from methods.errors import UserError

DECODING = "1"
"""Names the rule by which `load_image` makes pixels of a file's bytes, in the digest of a prepared dataset.
Whoever changes the rule in a way that can change a pixel raises it; see `results.moves` for what follows."""
RESIZE = "PIL bilinear, antialiased"

PIXELS = "SSMLL_MAX_PIXELS"
"""The environment variable for the most pixels of an image."""
MOST_PIXELS = 178_956_970
"""The limit without the variable: Pillow's, beyond which it takes an image for an attack."""
HEIF = "install pillow-heif to read it (pip install 'ssmll-bench[heic]')"
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""

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
        sources: for each image, the file that it was decoded from; None where the pixels were known.
    """

    chunk: Chunk
    sha256: str
    unreadable: tuple[tuple[Path, str], ...]
    sources: tuple[Source | None, ...] = ()


def load_image(path: Path, size: int) -> NDArray[np.uint8]:
    """Read one image.

    The image is rotated by its EXIF orientation and converted to RGB (from grey, palette, CMYK; 16-bit grey
    keeps the upper byte; transparency is dropped). It is then resized to a square without keeping the aspect
    ratio, as `torchvision.transforms.Resize((S, S))` does on a Pillow image: bilinear, antialiased.

    Of the EXIF data only the orientation is read; where it cannot be, the image is upright. Floats, and
    integers of 32 bits whose format does not say which value is white, are refused: a scale of each image
    would not be one rule. So are grey images of 16 bits that hold values of 8, which would be black.

    Args:
        path: any file that Pillow reads.
        size: side S in pixels.

    Returns:
        (3, S, S) uint8, RGB.

    Raises:
        OSError, SyntaxError, ValueError: Pillow's errors on a damaged file.
        ValueError: a mode that is refused.
        DecompressionBombWarning, DecompressionBombError: more pixels than `pixel_limit`.
    """
    with _opened(path) as opened:
        opened.load()
        turn = TURNS.get(_orientation(opened))
        image: Image.Image = opened if turn is None else opened.transpose(turn)
        if image.mode == "F":
            raise ValueError(f"mode F (32-bit floats), in which no value is white; {SAVE}")
        if image.mode.startswith("I"):
            image = _upper_byte(image, opened.format)
        image.info.pop("transparency", None)  # it is dropped; with it Pillow would warn
        image = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


SAVE = "save it with 8 or 16 bits, all images on the same scale"


def _upper_byte(image: Image.Image, form: str | None) -> Image.Image:
    """A grey image of 16 bits as one of 8."""
    # PNG and PGM say what is white; Pillow scales them to 16 bits.
    if image.mode == "I" and form not in ("PNG", "PPM"):
        raise ValueError(f"mode I (integers of 32 bits or with a sign), in which no value is white; {SAVE}")
    grey = np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
    if 0 < grey.max(initial=0) < 256:
        raise ValueError(
            f"mode {image.mode} (16 bits), but no value is above {grey.max()} of 65535: it would be black; "
            f"{SAVE}"
        )
    return Image.fromarray((grey >> 8).astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, from 1 to 8; 1 where there is none or where it cannot be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    # Pillow raises many kinds on EXIF that is no EXIF, which is no fault of the pixels.
    except Exception:
        return 1
    return found if isinstance(found, int) else 1


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image, with our limit of pixels and the decoder that its first bytes ask for."""
    if kinds.is_heif(kinds.head(path)):
        with suppress(ImportError):
            import pillow_heif

            pillow_heif.register_heif_opener()
    before = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = pixel_limit()
        with warnings.catch_warnings():
            # Pillow warns above the limit and raises above twice the limit: one limit is easier to say.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                yield opened
    finally:
        Image.MAX_IMAGE_PIXELS = before


def pixel_limit() -> int:
    """The most pixels that an image may have.

    Raises:
        UserError: the environment variable is no number.
    """
    text = os.environ.get(PIXELS, "")
    if not text:
        return MOST_PIXELS
    if not text.isascii() or not text.isdecimal() or not int(text):
        raise UserError(f"{PIXELS} is {text!r}; it must be a number of pixels, such as {4 * MOST_PIXELS}")
    return int(text)


def depends_on_setting(reason: str) -> bool:
    """Whether an image that was unreadable for a reason may be readable now, though its file is the same."""
    return PIXELS in reason or HEIF in reason


def reason_unreadable(path: Path, error: Exception) -> str:
    """Why `load_image` failed on an image, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        with suppress(OSError):
            if not path.stat().st_size:
                return "empty file"
            first = kinds.head(path)
            what = kinds.kind(first)
            if kinds.is_heif(first):
                return f"{what}; {HEIF}"
            if what:
                return f"not an image that can be read: {what}"
        return "not an image"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        size = re.search(r"\((\d+) pixels\)", str(error))
        count = f"{int(size[1]):,} pixels" if size else "its number of pixels"
        return (
            f"{count} exceeds limit of {pixel_limit():,}; raise it with {PIXELS}={size[1] if size else '...'}"
        )
    system = error.strerror if isinstance(error, OSError) else None
    reason = system or str(error).replace(str(path), path.name).strip() or type(error).__name__
    return reason.splitlines()[0]


def decode_chunk(chunk: Chunk) -> Decoded:
    """Read a chunk's images, write them to the cache file and flush it to the disk.

    Files are hashed and decoded in one go: hash and pixels are of the same bytes, or the image counts as
    unreadable. If an image of the chunk cannot be read, nothing is written.

    Raises:
        OSError: the cache file cannot be written, for instance because the disk is full.
    """
    shape = (3, chunk.size, chunk.size)
    pixels = np.empty((len(chunk.paths), *shape), dtype=np.uint8)
    unreadable = []
    sources: list[Source | None] = [None] * len(chunk.paths)
    for k, (path, place) in enumerate(zip(chunk.paths, chunk.known, strict=True)):
        if place is not None:
            count = pixels[k].size
            pixels[k] = np.fromfile(place[0], np.uint8, count, offset=place[1]).reshape(shape)
            continue
        try:
            source = read(path)
            pixels[k] = load_image(path, chunk.size)
            if stamp_of(path) != source.stamp:
                raise ValueError("it changed while it was read")
            sources[k] = source
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
    return Decoded(chunk, hashlib.sha256(pixels.data).hexdigest(), (), tuple(sources))


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
