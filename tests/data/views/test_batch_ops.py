"""Every operation against Pillow, image by image, in both implementations.

Tolerance: no difference at all, except for bicubic shear, where at most 0.5 % of the pixels may be
one grey level off (truncation of values that are an integer up to rounding; measured 0.25 %). The
implementations for groups and for single images must not differ in any pixel.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from benchmarks.data.views import image_ops as imageops
from benchmarks.data.views.batch_ops import (
    CUTOUT_FILL,
    OPERATIONS,
    WIDE_CUTOUT_FILL,
    fill_rectangle_,
)
from benchmarks.data.views.draws import magnitudes
from benchmarks.data.views.image_ops import IMAGE_OPERATIONS

GREY = (128, 128, 128)
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY")
FACTORS = ("Sharpness", "Contrast", "Color", "Brightness")


def affine(image, matrix, resample=Image.Resampling.NEAREST):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=GREY)


def rotate(image, degrees):
    turned = image.convert("RGBA").rotate(degrees)
    return Image.composite(turned, Image.new("RGBA", image.size, (128,) * 4), turned).convert("RGB")


def in_groups(name, batch, params):
    """(n, H, W, 3) int of a batch (n, 3, H, W) that goes through an operation together."""
    return OPERATIONS[name](batch, params).permute(0, 2, 3, 1).numpy().astype(int)


def one_by_one(name, batch, params):
    """The same, image by image."""
    images = zip(batch.numpy(), params.tolist(), strict=True)
    made = np.stack([IMAGE_OPERATIONS[name](image, values) for image, values in images])
    return made.transpose(0, 2, 3, 1).astype(int)


BICUBIC = Image.Resampling.BICUBIC
AFFINE = Image.Transform.AFFINE
PILLOW = {
    "Invert": lambda image, v: ImageOps.invert(image),
    "Sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
    "AutoContrast": lambda image, v: ImageOps.autocontrast(image),
    "Posterize": lambda image, v: ImageOps.posterize(image, int(v)),
    "ShearX": lambda image, v: affine(image, (1, v, 0, 0, 1, 0), BICUBIC),
    "TranslateX": lambda image, v: affine(image, (1, 0, v, 0, 1, 0)),
    "TranslateY": lambda image, v: affine(image, (1, 0, 0, 0, 1, v)),
    "ShearY": lambda image, v: affine(image, (1, 0, 0, v, 1, 0), BICUBIC),
    "Rotate": rotate,
    "Equalize": lambda image, v: ImageOps.equalize(image),
    "Contrast": lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    "Color": lambda image, v: ImageEnhance.Color(image).enhance(v),
    "Solarize": lambda image, v: ImageOps.solarize(image, v),
    "Brightness": lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    # SCPNet: nearest pixel, black outside
    "NearestShearX": lambda image, v: image.transform(image.size, AFFINE, (1, v, 0, 0, 1, 0)),
    "NearestShearY": lambda image, v: image.transform(image.size, AFFINE, (1, 0, 0, v, 1, 0)),
    "BlackTranslateX": lambda image, v: image.transform(image.size, AFFINE, (1, 0, v, 0, 1, 0)),
    "BlackTranslateY": lambda image, v: image.transform(image.size, AFFINE, (1, 0, 0, 0, 1, v)),
    "BlackRotate": lambda image, v: image.rotate(v),
}


def images_of(photo_like, height, width):
    rng = np.random.default_rng(7)
    noise = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    two_levels = rng.integers(0, 2, (height, width, 3), dtype=np.uint8) * 200
    narrow = 90 + rng.integers(0, 9, (height, width, 3), dtype=np.uint8)
    flat = np.full((height, width, 3), 77, np.uint8)
    almost_flat = flat.copy()
    almost_flat[0, 0] = 78
    real_like = [photo_like(seed, height, width) for seed in range(4)]
    return [*real_like, *noise, two_levels, narrow, flat, almost_flat]


def values_of(name, height, width):
    if name == "BlackRotate":
        return np.concatenate((np.linspace(-30, 30, 12), [0.0, 180.0, 359.5]))
    if name.startswith("NearestShear"):
        return np.random.default_rng(1).uniform(-0.3, 0.3, 12)
    if name.startswith("BlackTranslate"):
        return np.random.default_rng(2).uniform(-0.3, 0.3, 12) * (height, width)[name[-1] == "X"]
    grid = magnitudes(name)[1:]
    if name == "Solarize":
        return np.concatenate((grid, [0.5, 255.0, 255.5, 256.0]))
    if name == "TranslateX":
        grid = grid * width
    if name == "TranslateY":
        grid = grid * height
    if name in FACTORS:
        return np.concatenate((1 + grid, 1 - grid))
    return np.concatenate((grid, -grid)) if name in SIGNED else grid


@pytest.mark.parametrize("apply", [in_groups, one_by_one])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (45, 67)])
@pytest.mark.parametrize("name", list(PILLOW))
def test_operation_equals_pillow(name, height, width, apply, photo_like):
    arrays = images_of(photo_like, height, width)
    # Each magnitude meets each image, in one batch with different magnitudes side by side.
    cases = [(a, v) for a in arrays for v in values_of(name, height, width)]
    batch = torch.from_numpy(np.stack([a for a, _ in cases])).permute(0, 3, 1, 2).contiguous()
    params = torch.zeros(len(cases), 3, dtype=torch.float64)
    params[:, 0] = torch.tensor([v for _, v in cases])
    before = batch.clone()
    found = apply(name, batch, params)
    assert torch.equal(batch, before), "the input was changed"
    expected = np.stack([np.asarray(PILLOW[name](Image.fromarray(a), v)) for a, v in cases])
    difference = np.abs(found - expected)
    if name.startswith("Shear"):
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.005
        assert difference[-36:].max() == 0  # flat images stay flat
    else:
        assert difference.max() == 0


def test_every_operation_of_the_protocols_is_there():
    assert list(OPERATIONS)[:15] == [
        "Invert",
        "Cutout",
        "Sharpness",
        "AutoContrast",
        "Posterize",
        "ShearX",
        "TranslateX",
        "TranslateY",
        "ShearY",
        "Rotate",
        "Equalize",
        "Contrast",
        "Color",
        "Solarize",
        "Brightness",
    ]
    assert set(PILLOW) == set(OPERATIONS) - {"Cutout", "WideCutout"}
    assert list(OPERATIONS) == list(IMAGE_OPERATIONS)


@pytest.mark.parametrize(("height", "width"), [(96, 96), (224, 224), (3, 3), (5, 2), (2, 7), (1, 9), (1, 1)])
def test_both_implementations_give_the_same_pixels(height, width):
    rng = np.random.default_rng(height * width)
    batch = torch.from_numpy(rng.integers(0, 256, (8, 3, height, width), dtype=np.uint8))
    batch[0] = 9
    params = torch.zeros(8, 3, dtype=torch.float64)
    params[:, 1] = torch.from_numpy(rng.integers(0, height, 8))
    params[:, 2] = torch.from_numpy(rng.integers(0, width, 8))
    for name in OPERATIONS:
        values = values_of(name, height, width) if "utout" not in name else np.arange(21.0)
        for value in rng.permutation(values)[:8]:
            params[:, 0] = float(value)
            assert (in_groups(name, batch, params) == one_by_one(name, batch, params)).all(), (
                name,
                value,
            )


def test_pixels_moved_further_than_the_image_is_wide_leave_nothing():
    batch = torch.full((2, 3, 6, 5), 9, dtype=torch.uint8)
    params = torch.tensor([[7.0, 0, 0], [-7.0, 0, 0]], dtype=torch.float64)
    for name, fill in (("TranslateX", 128), ("BlackTranslateY", 0)):
        for apply in (in_groups, one_by_one):
            assert (apply(name, batch, params) == fill).all()


@pytest.mark.parametrize("apply", [in_groups, one_by_one])
def test_cutout_of_the_package_fills_a_clipped_square(photo_like, apply):
    height, width = 30, 40
    image = photo_like(1, height, width)
    sides = [2, 4, 7, 9, 11, 13, 16, 18, 20]
    centres = [(0, 0), (29, 39), (15, 20), (3, 38)]
    cases = [(side, *centre) for side in sides for centre in centres]
    batch = torch.from_numpy(image).permute(2, 0, 1).repeat(len(cases), 1, 1, 1)
    found = apply("Cutout", batch, torch.tensor(cases, dtype=torch.float64))
    for k, (side, row, column) in enumerate(cases):
        expected = image.copy()
        half = side // 2
        expected[max(0, row - half) : row + half, max(0, column - half) : column + half] = CUTOUT_FILL
        assert (found[k] == expected).all(), cases[k]


@pytest.mark.parametrize("apply", [in_groups, one_by_one])
def test_scpnets_cutout_equals_its_rectangle_drawn_by_pillow(photo_like, apply):
    height, width = 30, 40
    image = photo_like(1, height, width)
    rng = np.random.default_rng(3)
    cases = [(rng.uniform(0, 20), rng.uniform(1, height), rng.uniform(1, width)) for _ in range(60)]
    cases += [(0.0, 10.0, 10.0), (20.0, 30.0, 40.0), (20.0, 1.0, 1.0), (0.4, 12.5, 12.5)]
    batch = torch.from_numpy(image).permute(2, 0, 1).repeat(len(cases), 1, 1, 1)
    found = apply("WideCutout", batch, torch.tensor(cases, dtype=torch.float64))
    for k, (side, row, column) in enumerate(cases):
        expected = Image.fromarray(image)
        if side > 0:
            top, left = int(max(0, row - side / 2)), int(max(0, column - side / 2))
            corners = (left, top, min(width, left + side), min(height, top + side))
            ImageDraw.Draw(expected).rectangle(corners, WIDE_CUTOUT_FILL)
        assert (found[k] == np.asarray(expected)).all(), cases[k]


def test_fill_rectangle_clips_and_colours_each_image_on_its_own():
    images = torch.zeros(3, 3, 6, 5, dtype=torch.uint8)
    box = torch.tensor([[-3.0, 2, -1, 3], [4, 99, 4, 99], [2, 2, 0, 5]])
    colour = torch.tensor([[1, 2, 3], [255, 0, 7], [9, 9, 9]], dtype=torch.uint8)
    filled = fill_rectangle_(images, box, colour)
    assert filled is images
    assert (filled[0, :, :2, :3] == colour[0][:, None, None]).all()
    assert (filled[1, :, 4:, 4:] == colour[1][:, None, None]).all()
    assert filled[0].count_nonzero() == 18
    assert filled[1].count_nonzero() == 4
    assert filled[2].count_nonzero() == 0  # an empty box
    for image, edges, shades in zip(filled, box.tolist(), colour.tolist(), strict=True):
        single = np.zeros((3, 6, 5), np.uint8)
        imageops.fill_rectangle_(single, edges, shades)
        assert (single == image.numpy()).all()


def test_operations_on_real_photographs_equal_pillow():
    folder = os.environ.get("SSMLL_TEST_DATA", "")
    if not folder:
        pytest.skip("set SSMLL_TEST_DATA to a folder with voc2007-subset/VOCdevkit/VOC2007 to run this")
    tree = Path(folder) / "voc2007-subset" / "VOCdevkit" / "VOC2007" / "JPEGImages"
    photos = [Image.open(f).convert("RGB").resize((96, 96)) for f in sorted(tree.iterdir())[:6]]
    batch = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).contiguous()
    for name, reference in PILLOW.items():
        for value in values_of(name, 96, 96)[::4]:
            params = torch.full((len(photos), 3), float(value), dtype=torch.float64)
            expected = np.stack([np.asarray(reference(photo, value)) for photo in photos])
            for apply in (in_groups, one_by_one):
                difference = np.abs(apply(name, batch, params) - expected)
                assert difference.max() <= name.startswith("Shear"), name
                assert (difference > 0).mean() < 0.005, name
