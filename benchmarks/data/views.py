"""Weak, strong and test views of a batch of images, on the device the images are on.

A view's draws are a pure function of (seed, epoch, index, stream), so an image looks the same
whatever batch, process or resumed run it comes up in. Samples are grouped by operation and each
operation runs once per group; no image is touched by Python on its own.

Source of the semantics: the transforms of CAP (xiemk/SSMLL-CAP) and its relatives. Images come in
already resized; flipping before or after the resize is the same up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from benchmarks.data.ops import OPERATIONS, fill_rectangle_, hflip
from benchmarks.data.rng import uniforms
from methods.errors import UserError, nearest

POLICIES: tuple[str, ...] = ("test", "weak", "strong", "strong-no-cutout")

OPERATION_NAMES = tuple(OPERATIONS)
SLOTS = 2
"""RandAugment operations per strong view, in order, with replacement."""
APPLY = 0.5
"""Probability that a drawn operation is applied: a quarter of the strong views get none."""
CUTOUT = 0.5
"""Side of the cutout rectangle as a share of the image's side."""

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


def magnitudes(name: str) -> NDArray[np.float64]:
    """The operation's 10-point grid, index 0 … 9; draws use 1 … 9. Zeros where it has none."""
    return _MAGNITUDES.get(name, np.zeros(10))


@dataclass(frozen=True)
class StrongDraws:
    """What is random in the strong views of B images of H × W pixels.

    Attributes:
        flip: (B,) bool.
        box: (B, 4) float64 (top, bottom, left, right) of the cutout, ends exclusive, not clipped.
        colour: (B, 3) uint8 of the cutout.
        operation: (B, 2) int64, number in `OPERATION_NAMES`.
        applied: (B, 2) bool.
        level: (B, 2) int64 in 1 … 9.
        params: (B, 2, 3) float64, what the operation is given: its magnitude with sign (pixels for
            translations, a factor for the enhancements), then a random pixel (row, column).
    """

    flip: NDArray[np.bool_]
    box: NDArray[np.float64]
    colour: NDArray[np.uint8]
    operation: NDArray[np.int64]
    applied: NDArray[np.bool_]
    level: NDArray[np.int64]
    params: NDArray[np.float64]


def draw_flip(indices: ArrayLike, *, seed: int, epoch: int) -> NDArray[np.bool_]:
    """Which weak views are mirrored, (B,) bool."""
    return uniforms(seed, epoch, indices, "weak", 1)[:, 0] < 0.5


def draw_strong(
    indices: ArrayLike, height: int, width: int, *, seed: int, epoch: int
) -> StrongDraws:
    """Draw the strong views of some images; row b depends on `indices[b]` only."""
    u = uniforms(seed, epoch, indices, "strong", 6 + 6 * SLOTS)
    slots = u[:, 6:].reshape(-1, SLOTS, 6)
    operation = (slots[..., 0] * len(OPERATION_NAMES)).astype(np.int64)
    level = 1 + (slots[..., 1] * 9).astype(np.int64)
    sign = np.where(slots[..., 3] < 0.5, -1.0, 1.0)
    params = np.empty((*operation.shape, 3))
    params[..., 0] = _STRENGTH[operation, level]
    params[..., 0] *= np.where(_IS_SIGNED[operation], sign, 1.0)
    params[..., 0] *= np.where(operation == OPERATION_NAMES.index("TranslateX"), width, 1)
    params[..., 0] *= np.where(operation == OPERATION_NAMES.index("TranslateY"), height, 1)
    params[..., 0] += _IS_ENHANCE[operation]
    params[..., 1] = np.floor(slots[..., 4] * height)
    params[..., 2] = np.floor(slots[..., 5] * width)
    return StrongDraws(
        flip=u[:, 0] < 0.5,
        box=np.concatenate((_extent(u[:, 1], height), _extent(u[:, 2], width)), axis=1),
        colour=np.floor(u[:, 3:6] * 256).astype(np.uint8),
        operation=operation,
        applied=slots[..., 2] < APPLY,
        level=level,
        params=params,
    )


def make_view(
    images: Tensor, indices: ArrayLike, *, policy: str, seed: int, epoch: int
) -> Tensor:  # fmt: skip
    """Make one view of every image.

    Args:
        images: (B, 3, H, W) uint8, on any device. They are not changed.
        indices: (B,) integers that number the draws, such as positions in the training set.
        policy: "test": as it is. "weak": mirrored with probability 0.5. "strong": mirrored,
            cutout, RandAugment. "strong-no-cutout": the same draws without the cutout (warm-up).
            The weak and the strong view of an image are mirrored independently.
        seed: seed of the run.
        epoch: epoch, so that every epoch sees another view.

    Returns:
        (B, 3, H, W) float32 in [0, 1] on the device of the images, contiguous.

    Raises:
        UserError: unknown policy.
        ValueError: images or indices of the wrong type or shape.
    """
    if policy not in POLICIES:
        raise UserError(f"no view policy {policy!r}{nearest(policy, POLICIES)}")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images must be uint8 of shape (B, 3, H, W), not {images.dtype} {tuple(images.shape)}"
        )
    counters = np.asarray(indices)
    if counters.shape != (len(images),):
        raise ValueError(f"{len(images)} images, but indices of shape {counters.shape}")
    if policy == "weak":
        views, place = _flip(images, draw_flip(counters, seed=seed, epoch=epoch))
        images = _rows(views, _inverse(place))
    elif policy != "test":
        height, width = images.shape[-2:]
        draws = draw_strong(counters, height, width, seed=seed, epoch=epoch)
        images = apply_strong(images, draws, cutout=policy == "strong")
    return images.to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)


def apply_strong(images: Tensor, draws: StrongDraws, *, cutout: bool) -> Tensor:
    """Apply strong draws to uint8 images (B, 3, H, W); a new uint8 tensor."""
    device = images.device
    params = torch.from_numpy(draws.params).to(device)
    views, place = _flip(images, draws.flip)  # `place`: which image each row of `views` holds
    if cutout:
        box, colour = torch.from_numpy(draws.box[place]), torch.from_numpy(draws.colour[place])
        fill_rectangle_(views, box.to(device), colour.to(device))
    for slot in range(SLOTS):
        code = np.where(draws.applied[:, slot], draws.operation[:, slot], -1)
        order = np.argsort(code, kind="stable")
        views = _rows(views, _inverse(place)[order])
        place = order
        ends = np.searchsorted(code[order], range(len(OPERATION_NAMES) + 1))
        ordered = _rows(params[:, slot], order)
        for name, start, stop in zip(OPERATION_NAMES, ends[:-1], ends[1:], strict=True):
            if start < stop:
                views[start:stop] = OPERATIONS[name](views[start:stop], ordered[start:stop])
    return _rows(views, _inverse(place))


def _flip(images: Tensor, flip: NDArray[np.bool_]) -> tuple[Tensor, NDArray[np.int64]]:
    """A copy of the images, the mirrored ones first, and which image each of its rows holds."""
    order = np.argsort(~flip, kind="stable")
    views = _rows(images, order)
    count = int(flip.sum())
    views[:count] = hflip(views[:count])
    return views, order


def _rows(values: Tensor, order: NDArray[np.int64]) -> Tensor:
    """A copy with the rows in another order.

    Sorting the batch so that each operation meets a contiguous slice is several times faster on a
    CPU than scattering the results back.
    """
    return values.index_select(0, torch.from_numpy(order).to(values.device))


def _inverse(order: NDArray[np.int64]) -> NDArray[np.int64]:
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return inverse


def _extent(u: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """First and one past the last pixel of a cutout side, (B, 2), not clipped.

    `CutoutPIL` draws its rectangle with the last pixel included, hence the odd length.
    """
    centre, half = np.floor(u * size), int(CUTOUT * size + 0.5) // 2
    return np.stack((centre - half, centre + half + 1), axis=1)


_STRENGTH = np.stack([magnitudes(name) for name in OPERATION_NAMES])
_IS_SIGNED = np.array([name in _SIGNED for name in OPERATION_NAMES])
_IS_ENHANCE = np.array([name in _ENHANCE for name in OPERATION_NAMES])
