"""Views with parts: a whole image and its patches, each augmented by itself (D2L, ECCV 2024).

What follows the official code (github JiahaoXxX/SSMLL-D2L_MAT at 50c9a1c): patches are cut from the resized
image before it is mirrored, and each is enlarged to the image's size by bilinear resampling, as its
`transforms.Resize` does, then augmented with draws of its own. What differs: the code resizes the image
that is cut with Pillow's default, bicubic, and the whole one with bilinear; here both are the cached image.
It permutes the patches of an image; here they stand row by row, because what reads them does not depend on
their order.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from benchmarks.data.views.crop import resized_crop
from benchmarks.data.views.views import make_view
from methods.planned import check_patches

PART = 2**40
"""Between the numbers of the draws of an image and of its patches; more than images times passes over
them."""


def make_views(
    images: Tensor, indices: ArrayLike, *, policy: str, seed: int, epoch: int, patches: int = 0
) -> Tensor:
    """Make one view of every image, and of its patches.

    The view of the whole image is that of `make_view`.

    Args:
        images: (B, 3, H, W) uint8, on any device; not changed.
        indices: (B,) integers that number the draws, from 0 to `PART`.
        policy: see `make_view`; the patches follow it too.
        seed: seed of the run.
        epoch: number of the epoch.
        patches: n, into how many parts each side is cut; 0 for the whole image alone.

    Returns:
        (B, 3, H, W) float32 in [0, 1] for 0, else (B, 1 + n², 3, H, W), on the device of the images.

    Raises:
        UserError: unknown policy, or a side that n does not divide.
    """
    whole = make_view(images, indices, policy=policy, seed=seed, epoch=epoch)
    if not patches:
        return whole
    count, (height, width) = patches**2, images.shape[-2:]
    boxes = patch_boxes(height, width, patches)
    tiled = np.tile(boxes, (len(images), 1))
    counters = np.asarray(indices, dtype=np.int64)[:, None] + PART * np.arange(1, count + 1)
    parts = resized_crop(images.repeat_interleave(count, dim=0), tiled)
    views = make_view(parts, counters.ravel(), policy=policy, seed=seed, epoch=epoch)
    return torch.cat([whole[:, None], views.unflatten(0, (len(images), count))], dim=1)


def patch_boxes(height: int, width: int, patches: int) -> NDArray[np.int64]:
    """The patches of an image, row by row.

    Returns:
        (n², 4) int64 (top, left, height, width).

    Raises:
        UserError: n does not divide a side.

    >>> patch_boxes(8, 8, 2).tolist()
    [[0, 0, 4, 4], [0, 4, 4, 4], [4, 0, 4, 4], [4, 4, 4, 4]]
    """
    check_patches(height, patches, "height")
    check_patches(width, patches, "width")
    tall, wide = height // patches, width // patches
    rows, columns = np.divmod(np.arange(patches**2), patches)
    return np.stack(
        [rows * tall, columns * wide, np.full_like(rows, tall), np.full_like(rows, wide)], axis=1
    ).astype(np.int64)
