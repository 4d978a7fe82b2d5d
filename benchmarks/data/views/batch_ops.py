"""The operations of the CAP protocol's RandAugment and of SCPNet's, on batches, for accelerators.

Every operation takes uint8 images (n, 3, H, W) and one row of parameters per image, and returns Pillow's
result for each image, computed for the whole group at once on the images' device. The CPU does the same image
by image (`image_ops`), with equal results.

Reference: xiemk/SSMLL-CAP; the PyPI package `randaugment` 1.0.2 and ASL's `CutoutPIL`, whose
behaviour (not code) is reproduced here:

* shear is a bicubic affine map, translation and rotation take the nearest pixel; pixels from outside the
  image are grey 128;
* colour, contrast, brightness and sharpness are `PIL.ImageEnhance` with factors 1 ± magnitude;
* the package's own cutout fills with (125, 122, 113), not with 128.

jameslahm/SCPNet (`randaugment.py`) shares the operations on levels; its shear takes the nearest pixel, pixels
from outside are black, and its cutout is up to half as wide as the image and (125, 123, 114).

All equal Pillow's result on every pixel, except shear: where the interpolated value is an integer, rounding
errors in the last digit decide whether truncation keeps it, and ours (float32, one fraction per row) differ
from Pillow's (float64, per pixel); about 0.25 % of the pixels differ by one grey level.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

GREY = 128
CUTOUT_FILL = (125, 122, 113)
WIDE_CUTOUT_FILL = (125, 123, 114)


def hflip(images: Tensor) -> Tensor:
    """Mirror left and right."""
    return images.flip(-1)


def fill_rectangle_(images: Tensor, box: Tensor, colour: Tensor) -> Tensor:
    """Fill one rectangle per image, in place.

    Args:
        images: (n, 3, H, W) uint8, changed.
        box: (n, 4) rows (top, bottom, left, right), the ends exclusive; clipped to the image.
        colour: (n, 3) or (1, 3) uint8.

    Returns:
        The images.
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    top, bottom, left, right = (box[:, k, None] for k in range(4))
    inside_y = _bits((rows >= top) & (rows < bottom))[:, None, :, None]
    inside_x = _bits((columns >= left) & (columns < right))[:, None, None, :]
    inside = inside_y & inside_x
    filling = (colour[:, :, None, None] & inside_x) & inside_y
    return images.bitwise_and_(inside.bitwise_not_()).bitwise_or_(filling)


def invert(images: Tensor, params: Tensor) -> Tensor:
    """`PIL.ImageOps.invert`; `params` is ignored."""
    return ~images


def cutout(images: Tensor, params: Tensor) -> Tensor:
    """The package's own cutout: a square around a centre.

    Args:
        images: (n, 3, H, W) uint8.
        params: (n, 3) float64 rows (side in pixels, centre row, centre column).
    """
    half = torch.floor(params[:, 0] / 2)
    box = torch.stack(
        (params[:, 1] - half, params[:, 1] + half, params[:, 2] - half, params[:, 2] + half), dim=1
    )
    colour = torch.tensor([CUTOUT_FILL], dtype=torch.uint8, device=images.device)
    return fill_rectangle_(images.clone(), box, colour)


def wide_cutout(images: Tensor, params: Tensor) -> Tensor:
    """SCPNet's cutout: a square that is moved inside at the upper and left edges, not clipped there.

    Args:
        images: (n, 3, H, W) uint8.
        params: (n, 3) float64 rows (side in pixels, centre row, centre column); 0: none.
    """
    side = params[:, :1]
    first = torch.floor((params[:, 1:] - side / 2).clamp(min=0))
    end = torch.where(side > 0, torch.floor(first + side) + 1, first)  # the last pixel included
    box = torch.stack((first[:, 0], end[:, 0], first[:, 1], end[:, 1]), dim=1)
    colour = torch.tensor([WIDE_CUTOUT_FILL], dtype=torch.uint8, device=images.device)
    return fill_rectangle_(images.clone(), box, colour)


def posterize(images: Tensor, params: Tensor) -> Tensor:
    """`PIL.ImageOps.posterize`; params (n, 3) holds the number of bits kept, 1 to 8."""
    mask = (256 - torch.exp2(8 - params[:, 0])).to(torch.uint8)
    return images & mask[:, None, None, None]


def solarize(images: Tensor, params: Tensor) -> Tensor:
    """`PIL.ImageOps.solarize`; params (n, 3) holds the threshold, a real number in [0, 256]."""
    threshold = torch.ceil(params[:, 0]).to(torch.int16)
    return images ^ _bits(images >= threshold[:, None, None, None])


def autocontrast(images: Tensor, params: Tensor) -> Tensor:
    """`PIL.ImageOps.autocontrast` without cut-off; `params` is ignored."""
    flat = images.flatten(2)
    low, high = flat.amin(2, keepdim=True).double(), flat.amax(2, keepdim=True).double()
    # A number divided by a tensor is computed through the reciprocal, which rounds differently.
    scale = torch.full_like(high, 255.0) / (high - low)
    levels = torch.arange(256, dtype=torch.float64, device=images.device).expand(1, 1, 256)
    table = (levels * scale - low * scale).clamp(0, 255)
    return _look_up(images, torch.where(high > low, table, levels).to(torch.uint8))


def equalize(images: Tensor, params: Tensor) -> Tensor:
    """`PIL.ImageOps.equalize`; `params` is ignored."""
    n, channels, height, width = images.shape
    rows = torch.arange(n * channels, dtype=torch.int32, device=images.device)[:, None] * 256
    keys = images.reshape(n * channels, height * width) + rows
    counts = torch.bincount(keys.flatten(), minlength=n * channels * 256).view(n, channels, 256)
    # As in Pillow, the brightest level in use does not count for the step.
    brightest = images.flatten(2).amax(2, keepdim=True).long()
    step = (height * width - counts.gather(2, brightest)) // 255
    below = counts.cumsum(2) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    levels = torch.arange(256, device=images.device)
    return _look_up(images, torch.where(step > 0, table, levels).to(torch.uint8))


def brightness(images: Tensor, params: Tensor) -> Tensor:
    """`PIL.ImageEnhance.Brightness`; params (n, 3) holds the factor."""
    return _clip(images.float().mul_(_factor(params)))


def contrast(images: Tensor, params: Tensor) -> Tensor:
    """`PIL.ImageEnhance.Contrast`: blend with the mean grey level; params (n, 3): the factor."""
    values = images.float()
    mean = _grey(values).double().mean((1, 2, 3), keepdim=True)
    return _blend((mean + 0.5).floor().float(), values, params)


def color(images: Tensor, params: Tensor) -> Tensor:
    """`PIL.ImageEnhance.Color`: blend with the grey image; params (n, 3): the factor."""
    values = images.float()
    return _blend(_grey(values), values, params)


def sharpness(images: Tensor, params: Tensor) -> Tensor:
    """`PIL.ImageEnhance.Sharpness`: blend with the smoothed image; params (n, 3): the factor."""
    values = images.to(torch.int16)
    across = values[..., :-2] + values[..., 1:-1]
    across += values[..., 2:]
    total = across[..., :-2, :] + across[..., 1:-1, :]
    total += across[..., 2:, :]
    inner = values[..., 1:-1, 1:-1]
    total.add_(inner, alpha=4)
    # A sum over 13 is never halfway between two integers, so float32 rounds it as Pillow does.
    smooth = total.float().mul_(1 / 13).add_(0.5).floor_()
    result = images.clone()  # the outermost pixels are unchanged
    result[..., 1:-1, 1:-1] = _blend(smooth, inner.float(), params)
    return result


def translate_x(images: Tensor, params: Tensor, fill: int = GREY) -> Tensor:
    """Nearest-pixel shift; params (n, 3) holds the pixels, > 0 moves the picture to the left."""
    n, _, height, width = images.shape
    # Pillow samples at pixel centres: floor(x + 0.5 + t) = x + floor(t + 0.5).
    shift = torch.floor(params[:, :1] + 0.5).long()
    source = torch.arange(width, device=images.device) + shift
    source = torch.where((source >= 0) & (source < width), source, width)
    padded = F.pad(images, (0, 1), value=fill)
    return padded.gather(3, source[:, None, None, :].expand(n, 3, height, width))


def translate_y(images: Tensor, params: Tensor, fill: int = GREY) -> Tensor:
    """Nearest-pixel shift; params (n, 3) holds the pixels, > 0 moves the picture upwards."""
    return translate_x(images.transpose(2, 3), params, fill).transpose(2, 3)


def shear_x(images: Tensor, params: Tensor) -> Tensor:
    """Bicubic shear about the upper left corner; params (n, 3): source columns per row.

    A row is shifted by a constant, so the two-dimensional interpolation is a one-dimensional one
    with one fraction per row.
    """
    n, _, height, width = images.shape
    rows = torch.arange(height, dtype=torch.float64, device=images.device)
    columns = torch.arange(width, device=images.device)
    shift = params[:, :1] * (rows + 0.5)  # (n, H)
    whole = torch.floor(shift)
    fraction = (shift - whole).float()[:, None, :, None]
    taps = torch.arange(-1, width + 2, device=images.device)
    source = (whole.long()[:, :, None] + taps).clamp_(0, width - 1)  # (n, H, W + 3)
    values = images.gather(3, source[:, None].expand(n, 3, height, width + 3)).float()
    # Pillow's cubic (a = -1). The weights add up to one only within 1e-7: the small constant prevents that
    # flat areas are truncated to the next lower level.
    square, cube = fraction**2, fraction**3
    result = values[..., :width] * (2 * square - fraction - cube)
    result += values[..., 1 : width + 1] * (1 - 2 * square + cube)
    result += values[..., 2 : width + 2] * (fraction + square - cube)
    result += values[..., 3:] * (cube - square)
    result = _clip(result.add_(2e-4))
    centre = (columns + 0.5) + shift[:, :, None]
    inside = _bits((centre >= 0) & (centre < width))[:, None]
    return (result & inside) | (GREY & ~inside)


def shear_y(images: Tensor, params: Tensor) -> Tensor:
    """Bicubic shear about the upper left corner; params (n, 3): source rows per column."""
    return shear_x(images.transpose(2, 3), params).transpose(2, 3)


def rotate(images: Tensor, params: Tensor, fill: int = GREY) -> Tensor:
    """Nearest-pixel rotation about the centre; params (n, 3): degrees counter-clockwise."""
    height, width = images.shape[-2:]
    angle = -torch.deg2rad(params[:, 0] % 360)
    cos, sin = torch.cos(angle), torch.sin(angle)
    half_x, half_y = (width - 1) / 2, (height - 1) / 2
    start_x = width / 2 - cos * half_x - sin * half_y
    start_y = height / 2 + sin * half_x - cos * half_y
    return _nearest(images, torch.stack((cos, sin, start_x, -sin, cos, start_y), dim=1), fill)


def nearest_shear_x(images: Tensor, params: Tensor) -> Tensor:
    """Nearest-pixel shear about the upper left corner on black; params (n, 3): columns per row."""
    slope = params[:, 0]
    one, zero, half = (torch.full_like(slope, value) for value in (1.0, 0.0, 0.5))
    matrix = torch.stack((one, slope, 0.5 + slope / 2, zero, one, half), dim=1)
    return _nearest(images, matrix, 0)


def nearest_shear_y(images: Tensor, params: Tensor) -> Tensor:
    """Nearest-pixel shear about the upper left corner on black; params (n, 3): rows per column."""
    slope = params[:, 0]
    one, zero, half = (torch.full_like(slope, value) for value in (1.0, 0.0, 0.5))
    matrix = torch.stack((one, zero, half, slope, one, 0.5 + slope / 2), dim=1)
    return _nearest(images, matrix, 0)


def _nearest(images: Tensor, matrix: Tensor, fill: int) -> Tensor:
    """Nearest-pixel affine maps with 16.16 fixed-point coordinates, as in Pillow.

    Args:
        images: (n, 3, H, W) uint8.
        matrix: (n, 6) float64 source x and then y, each as (per column, per row, at pixel (0, 0));
            pixels are sampled at their centres.
        fill: level of pixels from outside.
    """
    n, _, height, width = images.shape
    fixed = torch.floor(matrix * 65536.0 + 0.5).to(torch.int32)[:, :, None, None]
    rows = torch.arange(height, dtype=torch.int32, device=images.device)[:, None]
    columns = torch.arange(width, dtype=torch.int32, device=images.device)
    x = (fixed[:, 2] + fixed[:, 1] * rows) + fixed[:, 0] * columns
    y = (fixed[:, 5] + fixed[:, 4] * rows) + fixed[:, 3] * columns
    # All coordinates outside are mapped to a frame of one pixel.
    x = (x >> 16).clamp_(-1, width).add_(1)
    y = (y >> 16).clamp_(-1, height).add_(1)
    source = y.mul_(width + 2).add_(x).long().view(n, 1, height * width)
    framed = F.pad(images, (1, 1, 1, 1), value=fill).flatten(2)
    return framed.gather(2, source.expand(n, 3, height * width)).view(images.shape)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
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
"""Operation by name: the fifteen of the package in its order, then those of SCPNet only."""


def _bits(condition: Tensor) -> Tensor:
    """255 where true, 0 where false: bit operations on bytes are much faster than `where`."""
    return condition.to(torch.uint8).neg_()


def _look_up(images: Tensor, table: Tensor) -> Tensor:
    """Map levels through one (n, 3, 256) uint8 table per image and channel."""
    return table.gather(2, images.flatten(2).long()).view(images.shape)


def _grey(images: Tensor) -> Tensor:
    """Pillow's grey level of float images (n, 3, H, W), (n, 1, H, W) float32 of integer value.

    Pillow: (19595 R + 38470 G + 7471 B + 32768) >> 16; every term is below 2^24, hence exact here.
    """
    red, green, blue = (images[:, k : k + 1] for k in range(3))
    total = (red * 19595).add_(green, alpha=38470).add_(blue, alpha=7471).add_(32768)
    return total.mul_(2.0**-16).floor_()


def _factor(params: Tensor) -> Tensor:
    return params[:, 0].float()[:, None, None, None]


def _blend(base: Tensor, images: Tensor, params: Tensor) -> Tensor:
    """`PIL.Image.blend(base, images, factor)`: base + factor (image - base), then truncated."""
    return _clip((images - base).mul_(_factor(params)).add_(base))


def _clip(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).to(torch.uint8)
