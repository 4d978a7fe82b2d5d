"""Weak, strong and test views of a batch of images, on the device the images are on.

A view's draws are a pure function of (seed, epoch, index, stream), so the view of an image is the same in any
batch, process or resumed run. Accelerators work on groups: samples with the same operation are processed
together. The CPU works image by image unless images are tiny, because an image fits into a core's cache and a
batch does not; both give the same bytes.

Images are already resized; mirroring before or after the resize is the same up to rounding. Views are not
normalised by mean and deviation, they are in [0, 1] as in the CAP family; a backbone that was trained on
normalised images normalises them itself (`methods.backbones.base`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from benchmarks.data.views.batch_ops import OPERATIONS, fill_rectangle_, hflip
from benchmarks.data.views.crop import plan, resized_crop, resized_crop_of_one
from benchmarks.data.views.draws import (
    OPERATION_NAMES,
    Draws,
    draw_nothing,
    draw_scpnet_strong,
    draw_scpnet_weak,
    draw_strong,
    draw_weak,
)
from benchmarks.data.views.image_ops import IMAGE_OPERATIONS
from benchmarks.data.views.image_ops import fill_rectangle_ as fill_rectangle_of_one_
from benchmarks.data.views.image_ops import hflip as hflip_of_one
from methods.errors import UserError, nearest

_POLICIES: dict[str, Callable[..., Draws]] = {
    "test": draw_nothing,
    "weak": draw_weak,
    "strong": draw_strong,
    "strong-no-cutout": partial(draw_strong, cutout=False),
    "dualcoop": partial(draw_strong, mirrored=False),
    "scpnet-weak": draw_scpnet_weak,
    "scpnet-strong": draw_scpnet_strong,
}
POLICIES: tuple[str, ...] = tuple(_POLICIES)

ONE_BY_ONE = 80 * 80
"""Pixels of an image from which the CPU processes images one by one. Strong views of 224 pixels a side then
take 56 % of the time; at 64 pixels the overhead of the calls is larger than the gain."""


@dataclass(frozen=True)
class Views:
    """The views of a protocol, by the names of their policies.

    Attributes:
        weak: view of unlabelled images for the scores of pseudo-labels.
        strong: view of unlabelled images for training.
        labelled: view of labelled images for training together with unlabelled ones.
        warmup: view of labelled images for training without unlabelled ones.
    """

    weak: str
    strong: str
    labelled: str
    warmup: str


FAMILIES: dict[str, Views] = {
    "cap": Views("weak", "strong", "strong", "strong-no-cutout"),
    "dualcoop": Views("test", "dualcoop", "dualcoop", "dualcoop"),
    "scpnet": Views("scpnet-weak", "scpnet-strong", "scpnet-weak", "scpnet-weak"),
}
"""Views by protocol. DualCoOp has one view and scores the unchanged image; SCPNet computes the loss of
labelled images on the weak view."""


def make_view(images: Tensor, indices: ArrayLike, *, policy: str, seed: int, epoch: int) -> Tensor:
    """Make one view of every image.

    Args:
        images: (B, 3, H, W) uint8, on any device; not changed.
        indices: (B,) integers that number the draws, such as positions in the training set.
        policy: "test": unchanged. "weak": mirrored with probability 0.5. "strong": mirrored,
            cutout, RandAugment. "strong-no-cutout": the same draws without the cutout (warm-up).
            "dualcoop": the draws of "strong", never mirrored. "scpnet-weak": mirrored, random
            resized crop. "scpnet-strong": three operations, cutout, then as "scpnet-weak".
            The weak and the strong view of an image are drawn independently.
        seed: seed of the run.
        epoch: number of the epoch; each epoch has other views.

    Returns:
        (B, 3, H, W) float32 in [0, 1] on the device of the images, contiguous.

    Raises:
        UserError: unknown policy.
        ValueError: images or indices of the wrong type or shape.
    """
    if policy not in _POLICIES:
        raise UserError(f"no view policy {policy!r}{nearest(policy, POLICIES)}")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images must be uint8 of shape (B, 3, H, W), not {images.dtype} {tuple(images.shape)}"
        )
    counters = np.asarray(indices)
    if counters.shape != (len(images),):
        raise ValueError(f"{len(images)} images, but indices of shape {counters.shape}")
    height, width = images.shape[-2:]
    draws = _POLICIES[policy](counters, height, width, seed=seed, epoch=epoch)
    if images.device.type != "cpu":
        return apply_in_groups(images, draws)
    few = height * width < ONE_BY_ONE
    return _on_one_core(apply_in_groups if few else apply_one_by_one, images, draws)


def apply_one_by_one(images: Tensor, draws: Draws) -> Tensor:
    """Apply draws to uint8 images (B, 3, H, W) on the CPU; float32 in [0, 1]."""
    views = torch.empty(images.shape, dtype=torch.float32)
    codes = np.where(draws.applied, draws.operation, -1).tolist()
    params = draws.params.tolist()
    boxes = None if draws.box is None else draws.box.tolist()
    colours = None if draws.colour is None else draws.colour.tolist()
    crops = None if draws.crop is None else plan(draws.crop, *images.shape[-2:])
    everything = zip(images.unbind(), views.unbind(), draws.flip.tolist(), strict=True)
    for k, (image, view, mirrored) in enumerate(everything):
        if mirrored and not crops:
            image = image.flip(-1)
        elif boxes:
            image = image.clone()
        pixels = image.numpy()
        if boxes and colours:
            fill_rectangle_of_one_(pixels, boxes[k], colours[k])
        for code, values in zip(codes[k], params[k], strict=True):
            if code >= 0:
                pixels = IMAGE_OPERATIONS[OPERATION_NAMES[code]](pixels, values)
        if crops:
            pixels = hflip_of_one(pixels) if mirrored else pixels
            pixels = resized_crop_of_one(pixels, crops[0].of(k), crops[1].of(k))
        view.copy_(torch.from_numpy(pixels)).mul_(1 / 255)  # the second pass reads from the core's cache
    return views


def apply_in_groups(images: Tensor, draws: Draws) -> Tensor:
    """Apply draws to uint8 images (B, 3, H, W) on any device; float32 in [0, 1].

    The batch is sorted so that each operation is applied to a contiguous slice.
    """
    device = images.device
    params = torch.from_numpy(draws.params).to(device)
    if draws.crop is None:
        views, place = _flip(images, draws.flip)  # `place`: which image each row of `views` holds
    else:
        views, place = images.clone(), np.arange(len(images))
    if draws.box is not None and draws.colour is not None:
        box, colour = torch.from_numpy(draws.box[place]), torch.from_numpy(draws.colour[place])
        fill_rectangle_(views, box.to(device), colour.to(device))
    for slot in range(draws.operation.shape[1]):
        code = np.where(draws.applied[:, slot], draws.operation[:, slot], -1)
        order = np.argsort(code, kind="stable")
        views = _rows(views, _inverse(place)[order])
        place = order
        ends = np.searchsorted(code[order], range(len(OPERATION_NAMES) + 1))
        ordered = _rows(params[:, slot], order)
        for name, start, stop in zip(OPERATION_NAMES, ends[:-1], ends[1:], strict=True):
            if start < stop:
                views[start:stop] = OPERATIONS[name](views[start:stop], ordered[start:stop])
    if draws.crop is not None:
        views, place = _flip(_rows(views, _inverse(place)), draws.flip)
        views = resized_crop(views, draws.crop[place])
    views = _rows(views, _inverse(place))
    return views.to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)


def _on_one_core(apply: Callable[[Tensor, Draws], Tensor], images: Tensor, draws: Draws) -> Tensor:
    """Apply draws in a thread in which torch does not parallelise operations.

    An operation on one image takes some ten microseconds, less than distributing its parts to threads; and
    when other processes use the cores, every operation waits for the part without a core, and views take 15
    times as long. Threads that share the images do not help either, because most of them wait for Python's
    lock: two threads have 1.07 times the rate of one at 224 pixels and 0.66 times at 128. Separate processes
    scale.
    """
    if torch.get_num_threads() == 1:
        return apply(images, draws)
    return single_thread(os.getpid()).submit(apply, images, draws).result()


@cache
def single_thread(process: int) -> ThreadPoolExecutor:
    """An executor of one thread in which torch uses one thread.

    Args:
        process: id of the calling process. Each has its own executor, because threads do not survive a fork.
    """
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(1, "views")
    pool.submit(torch.set_num_threads, 1).result()
    pool.submit(torch.get_num_threads).result()  # the first read fixes a thread's number
    torch.set_num_threads(before)  # the first call has set it for future threads as well
    return pool


def _flip(images: Tensor, flip: NDArray[np.bool_]) -> tuple[Tensor, NDArray[np.int64]]:
    """A copy of the images with the mirrored ones first, and the image number of each row."""
    order = np.argsort(~flip, kind="stable")
    views = _rows(images, order)
    count = int(flip.sum())
    views[:count] = hflip(views[:count])
    return views, order


def _rows(values: Tensor, order: NDArray[np.int64]) -> Tensor:
    """A copy with the rows in the given order."""
    return values.index_select(0, torch.from_numpy(order).to(values.device))


def _inverse(order: NDArray[np.int64]) -> NDArray[np.int64]:
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return inverse
