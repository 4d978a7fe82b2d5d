"""Random crops resized to the whole image (torchvision's `RandomResizedCrop`), on batches.

The crop is taken from the cached square, not from the file: the protocol's resize to a square comes first.
Two things differ from cropping the original: the drawn aspect ratio is relative to the square, so that of the
original image multiplies it, and a small crop is enlarged from the cached resolution instead of the file's.
Resampling is bilinear and equal to Pillow's in every byte: a crop is never larger than the result, so each
result pixel mixes two source pixels a side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from benchmarks.data.rng import uniforms

SCALE = (0.08, 1.0)
"""Share of the area, uniform; torchvision's default, which SCPNet uses."""
RATIO = (3 / 4, 4 / 3)
"""Width over height, log-uniform; also torchvision's default."""
ATTEMPTS = 10
"""Draws until one fits into the image; after these the largest centred crop of allowed ratio."""

_BITS = 22
"""Pillow's resampling weights for 8-bit images have this many fractional bits."""


class Taps(NamedTuple):
    """The source pixels of each pixel of a resized side; arrays (n, size), or (size,) for one image.

    Attributes:
        low: int64, source pixel before it.
        high: int64, source pixel after it; equal to `low` where only one pixel contributes.
        low_weight: int32, fixed-point.
        high_weight: int32, fixed-point.
    """

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    low_weight: NDArray[np.int32]
    high_weight: NDArray[np.int32]

    def of(self, k: int) -> Taps:
        """The taps of image k alone."""
        return Taps(*(part[k] for part in self))


def draw_crop(
    indices: ArrayLike, height: int, width: int, *, seed: int, epoch: int, stream: str
) -> NDArray[np.int64]:
    """Draw a crop for each index.

    Returns:
        (B, 4) int64 (top, left, height, width) within an image of height × width pixels.
    """
    u = uniforms(seed, epoch, indices, stream, 2 + 2 * ATTEMPTS)
    attempts = u[:, 2:].reshape(-1, ATTEMPTS, 2)
    area = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * attempts[..., 0])
    low, high = np.log(RATIO)
    ratio = np.exp(low + (high - low) * attempts[..., 1])
    wide, tall = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (wide > 0) & (wide <= width) & (tall > 0) & (tall <= height)
    rows, first = np.arange(len(u)), fits.argmax(axis=1)
    fallback = _largest(height, width)
    found = fits.any(axis=1)
    tall = np.where(found, tall[rows, first], fallback[0])
    wide = np.where(found, wide[rows, first], fallback[1])
    top = np.where(found, np.floor(u[:, 0] * (height - tall + 1)), (height - tall) // 2)
    left = np.where(found, np.floor(u[:, 1] * (width - wide + 1)), (width - wide) // 2)
    return np.stack((top, left, tall, wide), axis=1).astype(np.int64)


def _largest(height: int, width: int) -> tuple[int, int]:
    """Height and width of the largest crop whose ratio is allowed."""
    if width / height < RATIO[0]:
        return round(width / RATIO[0]), width
    if width / height > RATIO[1]:
        return height, round(height * RATIO[1])
    return height, width


def resized_crop(images: Tensor, crop: NDArray[np.int64]) -> Tensor:
    """Crop one rectangle of each image and resize it to the image's size.

    Args:
        images: (n, 3, H, W) uint8, on any device.
        crop: (n, 4) int64 (top, left, height, width), within the images.

    Returns:
        (n, 3, H, W) uint8, a new tensor; equal to `crop` and `resize` (bilinear) of a Pillow image.
    """
    n, _, height, width = images.shape
    rows, columns = plan(crop, height, width)
    for axis, out, taps in ((3, width, columns), (2, height, rows)):
        shape = (n, 1, 1, out) if axis == 3 else (n, 1, out, 1)
        low, high, low_weight, high_weight = (
            torch.from_numpy(part).to(images.device).view(shape) for part in taps
        )
        images = _mix(
            images.gather(axis, low.expand(images.shape)),
            images.gather(axis, high.expand(images.shape)),
            low_weight,
            high_weight,
        )
    return images


def resized_crop_of_one(image: NDArray[np.uint8], rows: Taps, columns: Taps) -> NDArray[np.uint8]:
    """The same for one image (3, H, W) on the CPU, with its taps of `plan`.

    Rows of pixels can be copied in one piece, columns only byte by byte: the image is therefore transposed in
    between, and only the rows that the crop reads are mixed.
    """
    top, bottom = int(rows.low[0]), int(rows.high[-1]) + 1
    part = np.ascontiguousarray(image[:, top:bottom].transpose(0, 2, 1))
    part = np.ascontiguousarray(_mix_rows(part, columns, 0).transpose(0, 2, 1))
    return _mix_rows(part, rows, top)


def plan(crop: NDArray[np.int64], height: int, width: int) -> tuple[Taps, Taps]:
    """The source rows of each result row, and the source columns of each result column.

    Args:
        crop: (n, 4) int64 (top, left, height, width).
        height: pixels of the images.
        width: pixels of the images.
    """
    return _taps(crop[:, 0], crop[:, 2], height), _taps(crop[:, 1], crop[:, 3], width)


def _taps(first: NDArray[np.int64], size: NDArray[np.int64], out: int) -> Taps:
    centre = (np.arange(out) + 0.5) * (size[:, None] / out)
    low = np.trunc(np.maximum(centre - 0.5, 0.0))
    weight = np.maximum(1.0 - np.abs(low + 0.5 - centre), 0.0)
    other = np.maximum(1.0 - np.abs(low + 1.5 - centre), 0.0)
    other[low + 1 >= size[:, None]] = 0.0  # the last pixel has no neighbour
    total = weight + other
    fixed = [np.floor(w / total * (1 << _BITS) + 0.5).astype(np.int32) for w in (weight, other)]
    start = first[:, None] + low.astype(np.int64)
    return Taps(start, start + (other > 0), fixed[0], fixed[1])


def _mix_rows(image: NDArray[np.uint8], taps: Taps, first: int) -> NDArray[np.uint8]:
    lower, upper = (torch.from_numpy(image.take(source - first, axis=1)) for source in (taps.low, taps.high))
    weights = (torch.from_numpy(part)[:, None] for part in (taps.low_weight, taps.high_weight))
    return _mix(lower, upper, *weights).numpy()


def _mix(low: Tensor, high: Tensor, low_weight: Tensor, high_weight: Tensor) -> Tensor:
    """Weighted mean in Pillow's fixed-point numbers, rounded."""
    mixed = low.int().mul_(low_weight)
    mixed += high.int().mul_(high_weight)
    return mixed.add_(1 << (_BITS - 1)).bitwise_right_shift_(_BITS).to(torch.uint8)
