"""Every operation against Pillow, image by image.

Tolerance: no difference at all, except for shear, where at most 0.5 % of the pixels may be one grey
level off (truncation of values that are an integer up to rounding; measured 0.25 %).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from benchmarks.data.ops import CUTOUT_FILL, OPERATIONS, fill_rectangle_
from benchmarks.data.views import magnitudes

GREY = (128, 128, 128)
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY")
FACTORS = ("Sharpness", "Contrast", "Color", "Brightness")


def affine(image, matrix, resample=Image.Resampling.NEAREST):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=GREY)


def rotate(image, degrees):
    turned = image.convert("RGBA").rotate(degrees)
    return Image.composite(turned, Image.new("RGBA", image.size, (128,) * 4), turned).convert("RGB")


BICUBIC = Image.Resampling.BICUBIC
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
    grid = magnitudes(name)[1:]
    if name == "TranslateX":
        grid = grid * width
    if name == "TranslateY":
        grid = grid * height
    if name in FACTORS:
        return np.concatenate((1 + grid, 1 - grid))
    return np.concatenate((grid, -grid)) if name in SIGNED else grid


@pytest.mark.parametrize(("height", "width"), [(64, 64), (45, 67)])
@pytest.mark.parametrize("name", list(PILLOW))
def test_operation_equals_pillow(name, height, width, photo_like):
    arrays = images_of(photo_like, height, width)
    # Each magnitude meets each image, in one batch with different magnitudes side by side.
    cases = [(a, v) for a in arrays for v in values_of(name, height, width)]
    batch = torch.from_numpy(np.stack([a for a, _ in cases])).permute(0, 3, 1, 2).contiguous()
    params = torch.zeros(len(cases), 3, dtype=torch.float64)
    params[:, 0] = torch.tensor([v for _, v in cases])
    before = batch.clone()
    found = OPERATIONS[name](batch, params).permute(0, 2, 3, 1).numpy().astype(int)
    assert torch.equal(batch, before), "the input was changed"
    expected = np.stack([np.asarray(PILLOW[name](Image.fromarray(a), v)) for a, v in cases])
    difference = np.abs(found - expected)
    if name.startswith("Shear"):
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.005
        assert difference[-36:].max() == 0  # flat images stay flat
    else:
        assert difference.max() == 0


def test_every_operation_of_the_protocol_is_there():
    assert list(OPERATIONS) == [
        "Invert", "Cutout", "Sharpness", "AutoContrast", "Posterize", "ShearX", "TranslateX",
        "TranslateY", "ShearY", "Rotate", "Equalize", "Contrast", "Color", "Solarize", "Brightness",
    ]  # fmt: skip
    assert set(PILLOW) == set(OPERATIONS) - {"Cutout"}


def test_cutout_of_the_package_fills_a_clipped_square(photo_like):
    height, width = 30, 40
    image = photo_like(1, height, width)
    sides = [2, 4, 7, 9, 11, 13, 16, 18, 20]
    centres = [(0, 0), (29, 39), (15, 20), (3, 38)]
    cases = [(side, *centre) for side in sides for centre in centres]
    batch = torch.from_numpy(image).permute(2, 0, 1).repeat(len(cases), 1, 1, 1)
    found = OPERATIONS["Cutout"](batch, torch.tensor(cases, dtype=torch.float64))
    for k, (side, row, column) in enumerate(cases):
        expected = image.copy()
        half = side // 2
        expected[max(0, row - half) : row + half, max(0, column - half) : column + half] = (
            CUTOUT_FILL
        )
        assert (found[k].permute(1, 2, 0).numpy() == expected).all(), cases[k]


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


def test_operations_on_real_photographs_equal_pillow():
    folder = os.environ.get("SSMLL_TEST_DATA", "")
    if not folder:
        pytest.skip(
            "set SSMLL_TEST_DATA to a folder with voc2007-subset/VOCdevkit/VOC2007 to run this"
        )
    tree = Path(folder) / "voc2007-subset" / "VOCdevkit" / "VOC2007" / "JPEGImages"
    photos = [Image.open(f).convert("RGB").resize((96, 96)) for f in sorted(tree.iterdir())[:6]]
    batch = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).contiguous()
    for name, reference in PILLOW.items():
        for value in values_of(name, 96, 96)[::4]:
            params = torch.full((len(photos), 3), float(value), dtype=torch.float64)
            found = OPERATIONS[name](batch, params).permute(0, 2, 3, 1).numpy().astype(int)
            expected = np.stack([np.asarray(reference(photo, value)) for photo in photos])
            difference = np.abs(found - expected)
            assert difference.max() <= name.startswith("Shear"), name
            assert (difference > 0).mean() < 0.005, name
