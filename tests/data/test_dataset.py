from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data.dataset import Dataset, ImageSet
from methods.errors import UserError


def image_set(prefix, labels):
    labels = np.array(labels, dtype=np.uint8)
    names = tuple(f"{prefix}{k}" for k in range(len(labels)))
    return ImageSet(names, tuple(Path("/data") / n for n in names), labels)


@pytest.fixture
def dataset():
    train = image_set("a", [[1, 0, 1], [0, 1, 0], [0, 0, 1]])
    test = image_set("b", [[0, 1, 0], [0, 0, 1]])
    return Dataset("d", ("cat", "dog", "dining"), ("cat", "dog", "dining table"), train, test)


def test_the_digest_covers_what_can_change_a_number_and_no_paths(dataset):
    def digest(**changes):
        return dataclasses.replace(dataset, **changes).digest

    train = dataset.train
    moved = dataclasses.replace(train, paths=tuple(Path("/other") / p.name for p in train.paths))
    assert digest(train=moved) == dataset.digest
    assert digest(notes=("counts accepted",)) == dataset.digest
    flipped = train.labels.copy()
    flipped[0, 1] = 1
    others = {
        digest(name="e"),
        digest(classes=("cat", "dog", "table")),
        digest(prompts=("cat", "dog", "table")),
        digest(train=dataclasses.replace(train, ids=("a0", "a1", "x"))),
        digest(train=dataclasses.replace(train, labels=flipped)),
        digest(train=dataset.test, test=dataset.train),
    }
    assert len(others) == 6
    assert dataset.digest not in others
    assert len(dataset.digest) == 64


def test_the_digest_does_not_depend_on_how_labels_lie_in_memory(dataset):
    turned = np.asfortranarray(dataset.train.labels)
    other = dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, labels=turned))
    assert other.digest == dataset.digest


def test_restricting_drops_columns_and_then_images(dataset):
    small = dataset.restrict(("dining", "cat"))
    assert small.classes == ("cat", "dining")  # the dataset's order
    assert small.prompts == ("cat", "dining table")
    assert small.train.ids == ("a0", "a2")
    assert small.train.labels.tolist() == [[1, 1], [0, 1]]
    assert small.test.ids == ("b1",)
    assert small.test.labels.flags.c_contiguous


def test_restricting_to_what_is_not_there_is_refused(dataset):
    with pytest.raises(UserError, match=r"no class 'dogs'; did you mean 'dog'\?"):
        dataset.restrict(("cat", "dogs"))
    with pytest.raises(UserError, match=r"class 'cat' is asked for twice"):
        dataset.restrict(("cat", "cat"))
    with pytest.raises(UserError, match=r"no test image has a label"):
        dataset.restrict(("cat",))


def test_an_image_in_both_splits_is_refused(dataset):
    shared = dataclasses.replace(dataset.test, paths=dataset.train.paths[:2])
    with pytest.raises(UserError, match=r"2 images are in train and in test, such as /data/a0"):
        dataclasses.replace(dataset, test=shared)


def test_a_class_listed_twice_is_refused(dataset):
    with pytest.raises(UserError, match="class 'cat' is listed twice"):
        dataclasses.replace(dataset, classes=("cat", "dog", "cat"))


def test_labels_cannot_be_changed_and_are_bytes(dataset):
    with pytest.raises(ValueError, match="read-only"):
        dataset.train.labels[0, 0] = 0
    with pytest.raises(ValueError, match="labels float64"):
        ImageSet(("a",), (Path("a"),), np.ones((1, 3)))
    with pytest.raises(ValueError, match="1 ids, labels"):
        image_set("a", [[1], [0]]).__class__(("a",), (Path("a"),), np.ones((2, 1), np.uint8))


def test_restricting_keeps_images_without_a_label_when_asked_for(dataset):
    small = dataset.restrict(("cat",), keep_empty=True)
    assert small.train.ids == ("a0", "a1", "a2")
    assert small.train.labels.tolist() == [[1], [0], [0]]
    assert small.test.ids == ("b0", "b1")


def test_images_are_left_out_by_their_names(dataset):
    rest = dataset.without(["a1", "b0"])
    assert rest.train.ids == ("a0", "a2")
    assert rest.train.paths == (Path("/data/a0"), Path("/data/a2"))
    assert rest.train.labels.tolist() == [[1, 0, 1], [0, 0, 1]]
    assert rest.test.ids == ("b1",)
    assert (rest.name, rest.classes, rest.prompts) == ("d", dataset.classes, dataset.prompts)
    assert rest.digest != dataset.digest
    assert dataset.without([]).digest == dataset.digest
    assert dataset.without(iter(["a1", "a1", "b0"])).digest == rest.digest


def test_a_name_of_both_splits_can_be_left_out_of_one():
    one, two = (
        ImageSet(("1", "2"), (Path(f"/{s}/1"), Path(f"/{s}/2")), np.ones((2, 1), np.uint8)) for s in "ab"
    )
    dataset = Dataset("d", ("cat",), ("cat",), one, two)
    both = dataset.without(["1"])
    assert both.train.ids == both.test.ids == ("2",)
    test = dataset.without(["1"], split="test")
    assert test.train.ids == ("1", "2")
    assert test.test.ids == ("2",)


def test_leaving_out_what_is_not_there_or_everything_is_refused(dataset):
    with pytest.raises(UserError, match=r"dataset 'd': no image 'a7'; did you mean 'a"):
        dataset.without(["a0", "a7"])
    with pytest.raises(UserError, match=r"no image 'a0'"):
        dataset.without(["a0"], split="test")
    with pytest.raises(UserError, match=r"dataset 'd': no test image would be left"):
        dataset.without(["b0", "b1"])
