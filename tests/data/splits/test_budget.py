"""Labelling budgets: shares, numbers of images, images for each class."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.data.dataset import Dataset, ImageSet
from benchmarks.data.splits.budget import Budget, draw_budget, exact_ratio
from benchmarks.data.splits.files import SplitRecord, Verifier, keep, load
from benchmarks.data.splits.rules import labelled_indices, per_class_indices, sees_hidden_labels
from methods.errors import UserError


def dataset(labels: np.ndarray) -> Dataset:
    names = tuple(f"c{k}" for k in range(labels.shape[1]))
    ids = [tuple(f"{part} {k}" for k in range(len(labels))) for part in ("train", "test")]
    images = [ImageSet(some, tuple(map(Path, some)), labels) for some in ids]
    return Dataset("d", names, names, *images)


@pytest.fixture
def labels() -> np.ndarray:
    """400 images of 12 classes, the rarest with three."""
    rng = np.random.default_rng(4)
    found = (rng.random((400, 12)) < np.geomspace(0.4, 0.02, 12)).astype(np.uint8)
    found[:, 11] = 0
    found[[7, 200, 399], 11] = 1
    return found


@pytest.mark.parametrize(
    ("said", "budget", "label"),
    [
        (0.05, Budget(ratio=0.05), ""),
        (1, Budget(ratio=1.0), ""),
        ("0.05", Budget(ratio=0.05), ""),
        ("100 images", Budget(images=100), "100 images"),
        ("1 image", Budget(images=1), "1 image"),
        (" 4  per class ", Budget(per_class=4), "4 per class"),
    ],
)
def test_what_a_budget_is_called(said, budget, label):
    assert Budget.of(said, "g") == budget
    assert budget.label == label
    assert Budget.of(budget.key, "g") == budget


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (0.0, r"g: ratio 0 is outside \(0, 1\]$"),
        (100, r"ratio 100 is outside \(0, 1\]; write '100 images' for a number of images"),
        (
            "100 img",
            r"ratio '100 img'; it must be a share in \(0, 1\] such as 0.05, '100 images' or '4 per class'",
        ),
        ("0 images", "it must be a share"),
        ("-3 per class", "it must be a share"),
        ("nan", "is outside"),
    ],
)
def test_what_is_no_budget_is_refused(said, message):
    with pytest.raises(UserError, match=message):
        Budget.of(said, "g")


def test_every_number_of_images_is_a_share_that_means_it():
    for total in (1, 7, 285, 4000, 5717, 82081):
        counts = range(1, total + 1) if total < 6000 else range(1, total + 1, 97)
        assert all(int(exact_ratio(count, total) * total) == count for count in counts)


def test_a_number_of_images_is_the_prefix_of_the_published_permutation(labels):
    drawn, rule, ratio = draw_budget(dataset(labels), "published", Budget(images=33), 5)
    assert (rule, int(ratio * 400)) == ("published", 33)
    assert drawn.labelled.tolist() == np.random.RandomState(5).permutation(400)[:33].tolist()
    share, _, same = draw_budget(dataset(labels), "published", Budget(ratio=0.05), 5)
    assert (same, len(share.labelled)) == (0.05, 20)
    with pytest.raises(UserError, match="d: 401 images are asked for, there are 400 for training"):
        draw_budget(dataset(labels), "published", Budget(images=401), 5)


@pytest.mark.parametrize("number", [1, 2, 4, 9])
@pytest.mark.parametrize("seed", [1, 2])
def test_each_class_has_its_images_and_none_of_them_can_be_left_out(labels, number, seed):
    labelled, unlabelled, few = per_class_indices(labels, number, seed)
    wanted = np.minimum(labels.sum(axis=0), number)
    have = labels[labelled].sum(axis=0)
    assert (have >= wanted).all()
    assert all(((have - labels[place]) < wanted).any() for place in labelled)  # minimum-including
    assert sorted([*labelled, *unlabelled]) == list(range(400))
    assert few.tolist() == [k for k in range(12) if labels[:, k].sum() < number]
    order = np.random.RandomState(seed).permutation(400).tolist()
    assert [order.index(k) for k in labelled] == sorted(order.index(k) for k in labelled)
    again = per_class_indices(labels.copy(), number, seed)[0]
    assert labelled.tolist() == again.tolist()


def test_images_for_each_class_are_a_rule_that_looks_at_all_labels_and_says_so(labels):
    drawn, rule, ratio = draw_budget(dataset(labels), "published", Budget(per_class=4), 1)
    assert rule == "4-per-class"
    assert int(ratio * 400) == len(drawn.labelled)
    assert sees_hidden_labels(rule, len(drawn.unlabelled))
    assert not sees_hidden_labels(rule, 0)
    assert not sees_hidden_labels("published", 9)
    (note,) = drawn.notes
    assert note == "1 classes have fewer than 4 training images, all are labelled: c11 (3)"
    with pytest.raises(UserError, match="'4 per class' is a rule of its own and does not go with split"):
        draw_budget(dataset(labels), "stratified", Budget(per_class=4), 1)
    with pytest.raises(UserError, match="no training image shows a class"):
        draw_budget(dataset(np.zeros((5, 2), np.uint8)), "published", Budget(per_class=1), 1)


def test_split_files_of_budgets_are_verified(tmp_path, labels):
    found = dataset(labels)
    for budget in (Budget(per_class=4), Budget(images=33)):
        drawn, rule, ratio = draw_budget(found, "published", budget, 1)
        record = SplitRecord.of(found, {}, rule, ratio, 1, drawn.labelled)
        assert (keep(tmp_path, record), keep(tmp_path, record)) == ("written", "present")
        path = record.path(tmp_path)
        assert load(path).rule == rule
        assert not Verifier(lambda _: found).check(path).problem
        changed = dataset(np.roll(labels, 1, axis=0))
        assert Verifier(lambda _, changed=changed: changed).check(path).problem
    assert len(labelled_indices(400, exact_ratio(33, 400), 1)[0]) == 33
