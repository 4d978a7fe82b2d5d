"""The random draws of views: pure functions of (seed, epoch, index, stream).

Sources: CAP's transforms (xiemk/SSMLL-CAP) with the PyPI package `randaugment` 1.0.2;
sunxm2357/DualCoOp, which uses the same without mirroring; jameslahm/SCPNet with its own
`randaugment.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.data.rng import uniforms
from benchmarks.data.views.batch_ops import OPERATIONS
from benchmarks.data.views.crop import draw_crop

OPERATION_NAMES = tuple(OPERATIONS)

CAP_OPERATIONS = OPERATION_NAMES[:15]
SLOTS = 2
"""RandAugment operations per strong view of CAP, in order, with replacement."""
APPLY = 0.5
"""Probability that a drawn operation is applied: a quarter of CAP's strong views have none."""
CUTOUT = 0.5
"""Side of the cutout rectangle as a share of the image's side."""

SCPNET_OPERATIONS = (
    "AutoContrast",
    "Brightness",
    "Color",
    "Contrast",
    "Equalize",
    "Identity",
    "Posterize",
    "BlackRotate",
    "Sharpness",
    "NearestShearX",
    "NearestShearY",
    "Solarize",
    "BlackTranslateX",
    "BlackTranslateY",
)
SCPNET_SLOTS = 3
"""RandAugment operations per strong view of SCPNet, all applied; the cutout follows."""

_GRID = np.linspace(0.0, 1.0, 10)
_SHIFT = 150 / 331
_SIGNED = frozenset(
    ("ShearX", "ShearY", "TranslateX", "TranslateY", "Sharpness", "Contrast", "Color", "Brightness")
)
_ENHANCE = frozenset(("Sharpness", "Contrast", "Color", "Brightness"))
_MAGNITUDES: dict[str, NDArray[np.float64]] = {
    "Cutout": np.round(20 * _GRID),  # side in pixels
    "Posterize": np.round(8 - 4 * _GRID),  # bits
    "Solarize": 256 - 256 * _GRID,  # threshold
    "Rotate": 30 * _GRID,  # degrees, one direction only
    "ShearX": 0.3 * _GRID,
    "ShearY": 0.3 * _GRID,
    "TranslateX": _SHIFT * _GRID,  # share of the width
    "TranslateY": _SHIFT * _GRID,  # share of the height
    **dict.fromkeys(_ENHANCE, 0.9 * _GRID),  # the factor is 1 ± this
}
_SCPNET_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_ENHANCE, (0.05, 0.95)),  # the factor
    "Posterize": (4.0, 8.0),  # bits, rounded down
    "BlackRotate": (-30.0, 30.0),  # degrees
    "NearestShearX": (-0.3, 0.3),
    "NearestShearY": (-0.3, 0.3),
    "Solarize": (0.0, 256.0),  # threshold
    "BlackTranslateX": (-0.3, 0.3),  # share of the width
    "BlackTranslateY": (-0.3, 0.3),  # share of the height
}


def magnitudes(name: str) -> NDArray[np.float64]:
    """The operation's 10-point grid in CAP, index 0 … 9; draws use 1 … 9. Zeros without one."""
    return _MAGNITUDES.get(name, np.zeros(10))


@dataclass(frozen=True)
class Draws:
    """The random draws for views of B images of H × W pixels, in the order in which they are applied.

    Attributes:
        flip: (B,) bool, mirror; applied after the operations where there is a crop.
        box: (B, 4) float64 (top, bottom, left, right) of the cutout, ends exclusive, not clipped;
            None: no cutout before the operations.
        colour: (B, 3) uint8 of the cutout; None: no cutout.
        operation: (B, slots) int64, number in `OPERATION_NAMES`; no slots in a weak view.
        applied: (B, slots) bool.
        level: (B, slots) int64 in 1 … 9; 0 where magnitudes are not on a grid.
        params: (B, slots, 3) float64, arguments of the operation: its magnitude with sign (pixels for
            translations, a factor for the enhancements), then a random pixel (row, column).
        crop: (B, 4) int64 (top, left, height, width), resized to the whole image; None: no crop.
    """

    flip: NDArray[np.bool_]
    box: NDArray[np.float64] | None
    colour: NDArray[np.uint8] | None
    operation: NDArray[np.int64]
    applied: NDArray[np.bool_]
    level: NDArray[np.int64]
    params: NDArray[np.float64]
    crop: NDArray[np.int64] | None


def draw_flip(indices: ArrayLike, *, seed: int, epoch: int) -> NDArray[np.bool_]:
    """Which weak views are mirrored, (B,) bool."""
    return uniforms(seed, epoch, indices, "weak", 1)[:, 0] < 0.5


def draw_weak(indices: ArrayLike, height: int, width: int, *, seed: int, epoch: int) -> Draws:
    """Draw CAP's weak views: mirrored or not."""
    return _plain(draw_flip(indices, seed=seed, epoch=epoch))


def draw_strong(
    indices: ArrayLike,
    height: int,
    width: int,
    *,
    seed: int,
    epoch: int,
    mirrored: bool = True,
    cutout: bool = True,
) -> Draws:
    """Draw CAP's strong views; row b depends on `indices[b]` only.

    Args:
        indices: (B,) integers.
        height: pixels of the images.
        width: pixels of the images.
        seed: seed of the run.
        epoch: epoch.
        mirrored: False: no view is mirrored, the other draws are the same (DualCoOp).
        cutout: False: no cutout, the other draws are the same (warm-up).
    """
    u = uniforms(seed, epoch, indices, "strong", 6 + 6 * SLOTS)
    slots = u[:, 6:].reshape(-1, SLOTS, 6)
    operation = (slots[..., 0] * len(CAP_OPERATIONS)).astype(np.int64)
    level = 1 + (slots[..., 1] * 9).astype(np.int64)
    sign = np.where(slots[..., 3] < 0.5, -1.0, 1.0)
    params = np.empty((*operation.shape, 3))
    params[..., 0] = _STRENGTH[operation, level]
    params[..., 0] *= np.where(_IS_SIGNED[operation], sign, 1.0)
    params[..., 0] *= np.where(operation == CAP_OPERATIONS.index("TranslateX"), width, 1)
    params[..., 0] *= np.where(operation == CAP_OPERATIONS.index("TranslateY"), height, 1)
    params[..., 0] += _IS_ENHANCE[operation]
    params[..., 1] = np.floor(slots[..., 4] * height)
    params[..., 2] = np.floor(slots[..., 5] * width)
    box = np.concatenate((_extent(u[:, 1], height), _extent(u[:, 2], width)), axis=1)
    return Draws(
        flip=(u[:, 0] < 0.5) & mirrored,
        box=box if cutout else None,
        colour=np.floor(u[:, 3:6] * 256).astype(np.uint8) if cutout else None,
        operation=operation,
        applied=slots[..., 2] < APPLY,
        level=level,
        params=params,
        crop=None,
    )


def draw_scpnet_weak(indices: ArrayLike, height: int, width: int, *, seed: int, epoch: int) -> Draws:
    """Draw SCPNet's weak views: mirrored or not, then a random crop resized to the whole."""
    flip = uniforms(seed, epoch, indices, "scpnet-weak", 1)[:, 0] < 0.5
    crop = draw_crop(indices, height, width, seed=seed, epoch=epoch, stream="scpnet-weak/crop")
    return _plain(flip, crop)


def draw_scpnet_strong(indices: ArrayLike, height: int, width: int, *, seed: int, epoch: int) -> Draws:
    """Draw SCPNet's strong views: three operations, its cutout, then mirror and crop as in the weak ones.

    SCPNet's code ignores the "5" of its `RandAugment(3, 5)`: magnitudes are uniform in their ranges. The
    cutout's side is uniform up to half the width; its centre is uniform in 1 … side of the image, because the
    code passes the side to NumPy as the lower bound of the range.
    """
    slots = SCPNET_SLOTS
    u = uniforms(seed, epoch, indices, "scpnet-strong", 4 + 2 * slots)
    crop = draw_crop(indices, height, width, seed=seed, epoch=epoch, stream="scpnet-strong/crop")
    picked = (u[:, 4 : 4 + slots] * len(SCPNET_OPERATIONS)).astype(np.int64)
    low, high = _SCPNET_LOW[picked], _SCPNET_HIGH[picked]
    params = np.zeros((len(u), slots + 1, 3))
    params[:, :slots, 0] = low + (high - low) * u[:, 4 + slots :]
    whole = picked == SCPNET_OPERATIONS.index("Posterize")
    params[:, :slots, 0][whole] = np.floor(params[:, :slots, 0][whole])
    params[:, :slots, 0][picked == SCPNET_OPERATIONS.index("BlackTranslateX")] *= width
    params[:, :slots, 0][picked == SCPNET_OPERATIONS.index("BlackTranslateY")] *= height
    params[:, slots, 0] = 0.5 * width * u[:, 1]
    params[:, slots, 1] = height + (1 - height) * u[:, 2]
    params[:, slots, 2] = width + (1 - width) * u[:, 3]
    cutout = np.full((len(u), 1), OPERATION_NAMES.index("WideCutout"))
    operation = np.concatenate((_SCPNET_NUMBERS[picked], cutout), axis=1)
    return Draws(
        flip=u[:, 0] < 0.5,
        box=None,
        colour=None,
        operation=operation,
        applied=operation >= 0,
        level=np.zeros_like(operation),
        params=params,
        crop=crop,
    )


def draw_nothing(indices: ArrayLike, height: int, width: int, *, seed: int, epoch: int) -> Draws:
    """The test view: the unchanged image."""
    return _plain(np.zeros(np.shape(indices), dtype=np.bool_))


def _plain(flip: NDArray[np.bool_], crop: NDArray[np.int64] | None = None) -> Draws:
    """A view without cutout and operations."""
    none = np.zeros((len(flip), 0), dtype=np.int64)
    return Draws(flip, None, None, none, none.astype(np.bool_), none, np.zeros((len(flip), 0, 3)), crop)


def _extent(u: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """First and one past the last pixel of a cutout side, (B, 2), not clipped.

    `CutoutPIL` draws its rectangle with the last pixel included, hence the odd length.
    """
    centre, half = np.floor(u * size), int(CUTOUT * size + 0.5) // 2
    return np.stack((centre - half, centre + half + 1), axis=1)


_STRENGTH = np.stack([magnitudes(name) for name in CAP_OPERATIONS])
_IS_SIGNED = np.array([name in _SIGNED for name in CAP_OPERATIONS])
_IS_ENHANCE = np.array([name in _ENHANCE for name in CAP_OPERATIONS])
_SCPNET_NUMBERS = np.array(
    [OPERATION_NAMES.index(n) if n in OPERATION_NAMES else -1 for n in SCPNET_OPERATIONS]
)
"""Number in `OPERATION_NAMES`; -1 for Identity."""
_SCPNET_LOW, _SCPNET_HIGH = np.array([_SCPNET_RANGES.get(name, (0.0, 0.0)) for name in SCPNET_OPERATIONS]).T
