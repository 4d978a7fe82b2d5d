"""Estimation images: how many, which, and what a class keeps."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.data.splits.estimation import split_off
from methods.errors import UserError


@pytest.mark.parametrize(
    ("images", "share", "count"), [(10, 0.2, 2), (11, 0.2, 2), (3, 0.2, 1), (100, 0.5, 50)]
)
def test_the_tail_of_the_drawn_order_leaves(images, share, count):
    labels = np.ones((images, 3), dtype=np.uint8)
    stay, leave = split_off(labels, share)
    assert leave.tolist() == list(range(images - count, images))
    assert stay.tolist() == list(range(images - count))


@pytest.mark.parametrize("seed", range(20))
def test_no_class_loses_its_last_positive(seed):
    rng = np.random.default_rng(seed)
    labels = (rng.random((40, 12)) < 0.06).astype(np.uint8)
    stay, leave = split_off(labels, 0.3)
    assert len(leave) == 12
    assert sorted([*stay, *leave]) == list(range(40))
    shown = labels.any(axis=0)
    assert labels[stay].any(axis=0)[shown].all()


def test_an_image_without_labels_may_leave_and_one_always_stays():
    assert split_off(np.zeros((4, 2), dtype=np.uint8), 0.99)[1].tolist() == [1, 2, 3]


def test_too_few_images_are_named():
    with pytest.raises(UserError, match=r"estimation_share: 0.5 of 4 labelled images takes 2, and only 0"):
        split_off(np.eye(4, dtype=np.uint8), 0.5)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 2.0])
def test_a_share_outside_is_named(share):
    with pytest.raises(UserError, match="estimation_share"):
        split_off(np.ones((4, 2), dtype=np.uint8), share)
