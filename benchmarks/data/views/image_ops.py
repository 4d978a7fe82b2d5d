"""The operations of `batch_ops`, one image at a time, for the CPU.

A batch of 64 images at 224 pixels has 38 MB in float32 and does not fit into a core's caches; one image stays
in the second-level cache from the first operation to the last. The CPU therefore works image by image, with
NumPy where that is faster than torch on a few hundred kilobytes: comparisons (17 times), float to byte (6
times), slices, row windows. Results equal those of `batch_ops` byte for byte.

Every operation takes an image (3, H, W) uint8, which it does not change, and its three parameters, and
returns a new image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.data.views.batch_ops import CUTOUT_FILL, GREY, WIDE_CUTOUT_FILL

Image = NDArray[np.uint8]
Parameters = Sequence[float]

_LEVELS = np.arange(256)


def hflip(image: Image) -> Image:
    """Mirror left and right."""
    return torch.from_numpy(image).flip(-1).numpy()


def fill_rectangle_(image: Image, box: Sequence[float], colour: Sequence[int]) -> None:
    """Fill (top, bottom, left, right), the ends exclusive, clipped to the image; in place."""
    top, bottom, left, right = (max(0, math.ceil(edge)) for edge in box)
    for channel, shade in zip(image, colour, strict=True):
        channel[top:bottom, left:right] = shade


def invert(image: Image, params: Parameters) -> Image:
    """`PIL.ImageOps.invert`; `params` is ignored."""
    return np.invert(image)


def cutout(image: Image, params: Parameters) -> Image:
    """The package's own cutout; params: side in pixels, centre row, centre column."""
    half = math.floor(params[0] / 2)
    result = image.copy()
    box = (params[1] - half, params[1] + half, params[2] - half, params[2] + half)
    fill_rectangle_(result, box, CUTOUT_FILL)
    return result


def wide_cutout(image: Image, params: Parameters) -> Image:
    """SCPNet's cutout; params: side in pixels, centre row, centre column."""
    side = params[0]
    result = image.copy()
    if side > 0:
        top, left = (int(max(0.0, centre - side / 2)) for centre in params[1:])
        box = (top, int(top + side) + 1, left, int(left + side) + 1)
        fill_rectangle_(result, box, WIDE_CUTOUT_FILL)
    return result


def posterize(image: Image, params: Parameters) -> Image:
    """`PIL.ImageOps.posterize`; params: number of bits kept, 1 to 8."""
    return image & np.uint8(256 - 2 ** (8 - int(params[0])))


def solarize(image: Image, params: Parameters) -> Image:
    """`PIL.ImageOps.solarize`; params: threshold, a real number in [0, 256]."""
    threshold = math.ceil(params[0])
    if threshold > 255:
        return image.copy()
    bright = np.greater_equal(image, np.uint8(threshold)).view(np.uint8)
    return np.negative(bright, out=bright).__ixor__(image)


def autocontrast(image: Image, params: Parameters) -> Image:
    """`PIL.ImageOps.autocontrast` without cut-off; `params` is ignored."""
    flat = image.reshape(3, -1)
    tables = []
    for low, high in zip(flat.min(1).tolist(), flat.max(1).tolist(), strict=True):
        scale = 255.0 / (high - low) if high > low else 1.0
        offset = low * scale if high > low else 0.0
        tables.append((_LEVELS * scale - offset).clip(0, 255).astype(np.uint8))
    return _look_up(image, tables)


def equalize(image: Image, params: Parameters) -> Image:
    """`PIL.ImageOps.equalize`; `params` is ignored."""
    tables = []
    for channel in image.reshape(3, -1):
        counts = torch.bincount(torch.from_numpy(channel), minlength=256).numpy()
        # As in Pillow, the brightest level in use does not count for the step.
        step = (len(channel) - int(counts[channel.max()])) // 255
        if step:
            below = counts.cumsum() - counts
            tables.append(((below + step // 2) // step).clip(max=255).astype(np.uint8))
        else:
            tables.append(_LEVELS.astype(np.uint8))
    return _look_up(image, tables)


def brightness(image: Image, params: Parameters) -> Image:
    """`PIL.ImageEnhance.Brightness`; params: the factor."""
    values = image.astype(np.float32)
    values *= np.float32(params[0])
    return _bytes(values)


def contrast(image: Image, params: Parameters) -> Image:
    """`PIL.ImageEnhance.Contrast`: blend with the mean grey level; params: the factor."""
    values = image.astype(np.float32)
    # Whole numbers: a row's sum is exact in float32, the sum of rows in float64.
    total = float(_grey(values).sum(-1).sum(dtype=np.float64))
    return _blend(np.float32(math.floor(total / values[0].size + 0.5)), values, params)


def color(image: Image, params: Parameters) -> Image:
    """`PIL.ImageEnhance.Color`: blend with the grey image; params: the factor."""
    values = image.astype(np.float32)
    return _blend(_grey(values), values, params)


def sharpness(image: Image, params: Parameters) -> Image:
    """`PIL.ImageEnhance.Sharpness`: blend with the smoothed image; params: the factor."""
    _, height, width = image.shape
    result = image.copy()
    if min(height, width) < 3:
        return result
    # The image is one long row, so that each sum is one pass; sums across the ends of two rows fall on the
    # outermost pixels, which are not changed.
    values = image.reshape(-1).astype(np.uint16)
    across = values[:-2] + values[1:-1]
    across += values[2:]
    total = across[: -2 * width] + across[width:-width]
    total += across[2 * width :]
    inner = values[width + 1 : -width - 1]
    total += inner * np.uint16(4)
    smooth = total.astype(np.float32)
    smooth *= np.float32(1 / 13)
    smooth += np.float32(0.5)
    np.floor(smooth, out=smooth)
    result.reshape(-1)[width + 1 : -width - 1] = _blend(smooth, inner.astype(np.float32), params)
    for edge in (np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]):
        result[edge] = image[edge]
    return result


def translate_x(image: Image, params: Parameters, fill: int = GREY) -> Image:
    """Nearest-pixel shift; params: pixels, > 0 moves the picture to the left."""
    return _shift(image, math.floor(params[0] + 0.5), 2, fill)


def translate_y(image: Image, params: Parameters, fill: int = GREY) -> Image:
    """Nearest-pixel shift; params: pixels, > 0 moves the picture upwards."""
    return _shift(image, math.floor(params[0] + 0.5), 1, fill)


def shear_x(image: Image, params: Parameters) -> Image:
    """Bicubic shear about the upper left corner; params: source columns per row."""
    _, height, width = image.shape
    starts, weights, first, end = _shear_geometry(params[0], height, width)
    # The rows are extended by their outermost pixels on both sides; each row of the result reads a window of
    # its own, with one column before and two after its pixels.
    before, after = max(0, -int(starts.min())), max(0, int(starts.max()) + 3)
    wide = np.empty((3, height, before + width + after), np.uint8)
    wide[..., :before] = image[..., :1]
    wide[..., before : before + width] = image
    wide[..., before + width :] = image[..., -1:]
    shape = (3, height, before + after - 2, width + 3)
    windows = as_strided(wide, shape, (*wide.strides, wide.strides[-1]))
    values = torch.from_numpy(windows[:, _indices(height), starts + before]).float()
    result = values[..., :width] * weights[0]
    part = torch.empty_like(result)
    for tap in (1, 2, 3):
        result += torch.mul(values[..., tap : tap + width], weights[tap], out=part)
    sheared = _bytes(result.add_(2e-4).numpy())
    columns = _indices(width)
    outside = columns < first
    outside |= columns >= end
    grey = np.negative(outside.view(np.uint8))
    sheared &= ~grey
    grey &= np.uint8(GREY)
    sheared |= grey
    return sheared


def shear_y(image: Image, params: Parameters) -> Image:
    """Bicubic shear about the upper left corner; params: source rows per column."""
    return np.ascontiguousarray(shear_x(image.transpose(0, 2, 1), params).transpose(0, 2, 1))


def rotate(image: Image, params: Parameters, fill: int = GREY) -> Image:
    """Nearest-pixel rotation about the centre; params: degrees counter-clockwise."""
    _, height, width = image.shape
    angle = -math.radians(params[0] % 360)
    cos, sin = math.cos(angle), math.sin(angle)
    half_x, half_y = (width - 1) / 2, (height - 1) / 2
    start_x = width / 2 - cos * half_x - sin * half_y
    start_y = height / 2 + sin * half_x - cos * half_y
    return _nearest(image, (cos, sin, start_x, -sin, cos, start_y), fill)


def nearest_shear_x(image: Image, params: Parameters) -> Image:
    """Nearest-pixel shear about the upper left corner on black; params: columns per row."""
    slope = params[0]
    return _nearest(image, (1.0, slope, 0.5 + slope / 2, 0.0, 1.0, 0.5), 0)


def nearest_shear_y(image: Image, params: Parameters) -> Image:
    """Nearest-pixel shear about the upper left corner on black; params: rows per column."""
    slope = params[0]
    return _nearest(image, (1.0, 0.0, 0.5, slope, 1.0, 0.5 + slope / 2), 0)


IMAGE_OPERATIONS: dict[str, Callable[[Image, Parameters], Image]] = {
    "Invert": invert,
    "Cutout": cutout,
    "Sharpness": sharpness,
    "AutoContrast": autocontrast,
    "Posterize": posterize,
    "ShearX": shear_x,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "ShearY": shear_y,
    "Rotate": rotate,
    "Equalize": equalize,
    "Contrast": contrast,
    "Color": color,
    "Solarize": solarize,
    "Brightness": brightness,
    "NearestShearX": nearest_shear_x,
    "NearestShearY": nearest_shear_y,
    "BlackTranslateX": partial(translate_x, fill=0),
    "BlackTranslateY": partial(translate_y, fill=0),
    "BlackRotate": partial(rotate, fill=0),
    "WideCutout": wide_cutout,
}
"""Operation by name, in the order of `batch_ops.OPERATIONS`."""


def _look_up(image: Image, tables: Sequence[Image]) -> Image:
    """Map levels through one table of 256 bytes per channel.

    `bytes.translate` is a loop over bytes; fancy indexing would widen each byte to 64 bits first.
    """
    result = np.empty_like(image)
    for source, table, target in zip(image, tables, result, strict=True):
        mapped = source.tobytes().translate(table.tobytes())
        target[...] = np.frombuffer(mapped, np.uint8).reshape(target.shape)
    return result


def _grey(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pillow's grey level of a float image, (H, W), of integer value; see `batch_ops`."""
    total = values[0] * np.float32(19595)
    total += values[1] * np.float32(38470)
    total += values[2] * np.float32(7471)
    total += np.float32(32768)
    total *= np.float32(2.0**-16)
    return np.floor(total, out=total)


def _blend(base: NDArray[np.float32] | np.float32, values: NDArray[np.float32], params: Parameters) -> Image:
    """`PIL.Image.blend(base, values, factor)`, truncated; changes `values`."""
    values -= base
    values *= np.float32(params[0])
    values += base
    return _bytes(values)


def _bytes(values: NDArray[np.float32]) -> Image:
    """Clamp to 0 … 255 and truncate; changes `values`."""
    torch.from_numpy(values).clamp_(0, 255)
    return values.astype(np.uint8)


def _shift(image: Image, shift: int, axis: int, fill: int) -> Image:
    size = image.shape[axis]
    result = np.full_like(image, fill)
    to, source = [slice(None)] * 3, [slice(None)] * 3
    to[axis] = slice(max(0, -shift), max(0, size - shift))
    source[axis] = slice(max(0, shift), max(0, size + shift))
    result[tuple(to)] = image[tuple(source)]
    return result


@lru_cache(maxsize=64)
def _shear_geometry(
    slope: float, height: int, width: int
) -> tuple[NDArray[np.int64], Tensor, NDArray[np.int32], NDArray[np.int32]]:
    """The windows and weights of a shear for each row; cached, because a protocol has few slopes.

    Returns:
        (H,) first source column of the row's window, (4, H, 1) float32 weights of its taps,
        (H, 1) first column whose source lies in the image and (H, 1) the one past the last.
    """
    shift = slope * (np.arange(height) + 0.5)
    whole = np.floor(shift)
    fraction = torch.from_numpy((shift - whole).astype(np.float32))
    # Pillow's cubic (a = -1), as in `batch_ops`.
    square, cube = fraction**2, fraction**3
    weights = torch.stack(
        (2 * square - fraction - cube, 1 - 2 * square + cube, fraction + square - cube, cube - square)
    )
    centre = (np.arange(width) + 0.5) + shift[:, None]
    first, end = ((centre < bound).sum(1, dtype=np.int32)[:, None] for bound in (0, width))
    return whole.astype(np.int64) - 1, weights[..., None], first, end


def _nearest(image: Image, matrix: Sequence[float], fill: int) -> Image:
    """Nearest-pixel affine map with 16.16 fixed-point coordinates, as in Pillow.

    Args:
        image: (3, H, W) uint8.
        matrix: source x and then y, each as (per column, per row, at pixel (0, 0)).
        fill: level of pixels from outside.
    """
    _, height, width = image.shape
    fixed = [math.floor(value * 65536.0 + 0.5) for value in matrix]
    rows, columns = _indices(height)[:, None], _indices(width)
    x = (fixed[2] + fixed[1] * rows) + fixed[0] * columns
    y = (fixed[5] + fixed[4] * rows) + fixed[3] * columns
    x >>= 16
    y >>= 16
    # All coordinates outside are mapped to a frame of one pixel.
    x.clip(-1, width, out=x)
    y.clip(-1, height, out=y)
    y *= width + 2
    y += x
    source = y.astype(np.intp) + (width + 3)
    framed = np.full((3, height + 2, width + 2), fill, np.uint8)
    framed[:, 1:-1, 1:-1] = image
    result = np.empty_like(image)
    for plane, target in zip(framed.reshape(3, -1), result, strict=True):
        plane.take(source, mode="clip", out=target)  # "clip" only avoids a check
    return result


@lru_cache(maxsize=8)
def _indices(count: int) -> NDArray[np.int32]:
    return np.arange(count, dtype=np.int32)
