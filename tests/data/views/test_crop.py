"""Random resized crops against Pillow and torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from benchmarks.data.views.crop import ATTEMPTS, draw_crop, plan, resized_crop, resized_crop_of_one


def draw(n, height, width, **key):
    return draw_crop(np.arange(n), height, width, **{"seed": 1, "epoch": 0, "stream": "c", **key})


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 41), (5, 7), (1, 1)])
def test_a_resized_crop_equals_pillows_in_every_pixel(height, width):
    crop = draw(120, height, width)
    crop[:5] = (
        (0, 0, height, width),
        (0, 0, 1, 1),
        (height - 1, width - 1, 1, 1),
        (0, 0, height, 1),
        (0, 0, 1, width),
    )
    images = np.random.default_rng(0).integers(0, 256, (120, 3, height, width), dtype=np.uint8)
    before = images.copy()
    found = resized_crop(torch.from_numpy(images), crop).numpy()
    rows, columns = plan(crop, height, width)
    for k, (top, left, tall, wide) in enumerate(crop.tolist()):
        picture = Image.fromarray(np.ascontiguousarray(images[k].transpose(1, 2, 0)))
        cut = picture.crop((left, top, left + wide, top + tall))
        expected = np.asarray(cut.resize((width, height), Image.Resampling.BILINEAR))
        assert (found[k].transpose(1, 2, 0) == expected).all(), crop[k]
        one = resized_crop_of_one(images[k], rows.of(k), columns.of(k))
        assert (one == found[k]).all()
    assert (images == before).all()


def test_crops_are_distributed_as_torchvisions():
    n, height, width = 20_000, 60, 60
    crop = draw(n, height, width)
    torch.manual_seed(0)
    blank = torch.zeros(1, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n // 4)]
    )
    for column in range(4):
        for share in (0.1, 0.25, 0.5, 0.75, 0.9):
            ours, other = (np.quantile(c[:, column], share) for c in (crop, theirs))
            assert abs(ours - other) <= 1.5, (column, share)
    area = crop[:, 2] * crop[:, 3] / (height * width)
    assert 0.07 < area.min() < 0.09
    assert abs(area.mean() - np.prod(theirs[:, 2:], axis=1).mean() / (height * width)) < 0.01


@pytest.mark.parametrize(("height", "width"), [(40, 40), (7, 90), (90, 7), (2, 3), (1, 1)])
def test_a_crop_lies_within_the_image(height, width):
    top, left, tall, wide = draw(3000, height, width).T
    assert min(tall.min(), wide.min()) >= 1
    assert min(top.min(), left.min()) >= 0
    assert (top + tall).max() <= height
    assert (left + wide).max() <= width


def test_without_a_fitting_draw_the_largest_centred_crop_is_taken():
    # no crop of this strip has a ratio of at most 4/3 and 8 % of the area
    assert set(map(tuple, draw(50, 4, 400))) == {(0, 197, 4, 5)}
    assert set(map(tuple, draw(50, 400, 4))) == {(197, 0, 5, 4)}
    assert RandomResizedCrop.get_params(torch.zeros(1, 4, 400), [0.08, 1.0], [3 / 4, 4 / 3]) == (
        0,
        197,
        4,
        5,
    )
    assert ATTEMPTS == 10


def test_a_crop_depends_on_its_own_key_only():
    crop = draw(40, 50, 50)
    again = draw_crop(np.array([7, 3]), 50, 50, seed=1, epoch=0, stream="c")
    assert (again == crop[[7, 3]]).all()
    for key in ({"seed": 2}, {"epoch": 1}, {"stream": "d"}):
        assert (draw(40, 50, 50, **key) != crop).any(axis=1).mean() > 0.9
