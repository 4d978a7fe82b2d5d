"""Views with patches against Pillow and torchvision, and their draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from benchmarks.data.views.patches import PART, make_views, patch_boxes
from benchmarks.data.views.views import POLICIES, make_view
from methods.errors import UserError


def images_of(count: int = 3, size: int = 12) -> torch.Tensor:
    pixels = np.random.default_rng(4).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    return torch.from_numpy(pixels)


def views(images, indices=None, **changed):
    key = {"policy": "strong", "seed": 1, "epoch": 2, "patches": 2, **changed}
    return make_views(images, np.arange(len(images)) if indices is None else indices, **key)


@pytest.mark.parametrize(("size", "patches"), [(12, 2), (12, 3), (224, 2), (7, 1)])
def test_test_views_of_patches_are_those_of_torchvision(size, patches):
    images = images_of(2, size)
    found = views(images, policy="test", patches=patches)
    assert found.shape == (2, 1 + patches**2, 3, size, size)
    resize = transforms.Resize((size, size))
    side = size // patches
    for image, ours in zip(images, found, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        found_bytes = (ours * 255).round().to(torch.uint8)
        assert torch.equal(found_bytes[0], image)
        for number in range(patches**2):
            row, column = divmod(number, patches)
            box = (column * side, row * side, (column + 1) * side, (row + 1) * side)
            expected = transforms.functional.pil_to_tensor(resize(picture.crop(box)))
            assert torch.equal(found_bytes[1 + number], expected)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_whole_image_has_its_usual_view(policy):
    images = images_of()
    usual = make_view(images, np.arange(3), policy=policy, seed=1, epoch=2)
    assert torch.equal(views(images, policy=policy)[:, 0], usual)
    assert torch.equal(views(images, policy=policy, patches=0), usual)


def test_each_patch_has_draws_of_its_own():
    # All patches of a uniform image are equal, so what differs is drawn.
    images = torch.full((40, 3, 16, 16), 90, dtype=torch.uint8)
    images[..., :8] = 160
    tall = images.repeat(1, 1, 2, 2)  # four patches, each the 16 x 16 picture enlarged
    flips = views(tall, policy="weak")[:, 1:, 0, 0, 0] < 0.5
    share = flips.float().mean(dim=0)
    assert ((share > 0.2) & (share < 0.8)).all()
    assert len({tuple(column) for column in flips.T.tolist()}) == 4
    assert not torch.equal(views(tall, epoch=3), views(tall))


def test_a_view_depends_on_its_image_alone():
    images = images_of(4)
    together = views(images, [5, 9, 0, 2])
    for k, index in enumerate([5, 9, 0, 2]):
        assert torch.equal(views(images[k : k + 1], [index]), together[k : k + 1])


def test_numbers_of_patches_meet_no_other_image():
    counters = np.arange(0, PART, PART // 7)
    parts = counters[:, None] + PART * np.arange(5)
    assert len(np.unique(parts)) == parts.size


def test_no_images_have_no_views():
    assert views(images_of()[:0]).shape == (0, 5, 3, 12, 12)


@pytest.mark.parametrize(("size", "patches"), [(13, 2), (12, 5), (2, 3)])
def test_a_side_that_does_not_divide_is_named(size, patches):
    with pytest.raises(UserError, match=f"height = {size} does not divide into {patches} patches"):
        views(images_of(1, size), patches=patches)
    with pytest.raises(UserError, match="width = 9"):
        patch_boxes(8, 9, 2)
