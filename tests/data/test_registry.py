"""Datasets by name: specifications, and the readers of the classic datasets behind them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from benchmarks.data.readers.class_names import COCO, NUS, VOC
from benchmarks.data.registry import DatasetSpec, available, open_dataset
from methods.errors import UserError


def spec(name, **fields):
    return DatasetSpec(name=name, **fields)


def test_available_datasets_are_sorted():
    names = available()
    assert names == sorted(names)
    assert {"coco2014", "glyphscenes", "nuswide", "voc2007", "voc2012"} <= set(names)


def test_class_lists_have_their_known_lengths():
    assert (len(VOC), len(COCO), len(NUS)) == (20, 80, 81)
    assert all(len(set(names)) == len(names) for names in (VOC, COCO, NUS))
    assert list(NUS) == sorted(NUS)


def test_names_and_aliases_are_checked():
    with pytest.raises(UserError, match=r"no dataset 'voc2017'; did you mean 'voc20"):
        spec("voc2017")
    for alias in ("a/b", "..", " ", "-x"):
        with pytest.raises(UserError, match="alias"):
            spec("voc2007", alias=alias)
    assert spec("voc2007").alias == "voc2007"
    assert hash(spec("voc2007", classes=("car",)))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("voc2007", ["VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar", "robots.ox.ac.uk"]),
        ("voc2012", ["VOCtrainval_11-May-2012.tar", "robots.ox.ac.uk"]),
        ("coco2014", ["train2014.zip", "val2014.zip", "annotations_trainval2014.zip"]),
        ("nuswide", ["formatted_{train,val}_{images,labels}.npy", "Flickr.zip", "10162606"]),
    ],
)
def test_an_absent_dataset_comes_with_its_commands(tmp_path, name, parts):
    with pytest.raises(UserError) as caught:
        open_dataset(spec(name), tmp_path / "my data")
    message = str(caught.value)
    assert message.startswith(f"dataset {name!r} is not in {tmp_path}/my data/{name}; get it with:")
    assert f"mkdir -p '{tmp_path}/my data/{name}'" in message  # quoted for the shell
    assert "\n" not in message
    for part in parts:
        assert part in message


# -- VOC --------------------------------------------------------------------------------------


@pytest.mark.parametrize("year", ["2007", "2012"])
def test_voc_reads_the_published_splits(tmp_path, small_voc, year):
    small_voc(year)
    dataset = open_dataset(spec(f"voc{year}", allow_counts=True), tmp_path)
    assert dataset.name == f"voc{year}"
    assert dataset.classes == VOC
    assert "dining table" in dataset.prompts
    assert "tv monitor" in dataset.prompts
    assert dataset.train.ids == ("000001", "000002")
    assert dataset.test.ids == ("000004", "000005")


def test_counts_that_are_not_the_classic_ones_are_refused_or_noted(tmp_path, small_voc):
    small_voc("2007")
    with pytest.raises(UserError) as caught:
        open_dataset(spec("voc2007"), tmp_path)
    message = str(caught.value)
    # listed images count, with and without a label
    assert "3 training and 2 test images" in message
    assert "5,011 and 4,952" in message
    assert "--allow-counts" in message
    dataset = open_dataset(spec("voc2007", allow_counts=True), tmp_path)
    assert "3 training" in dataset.notes[0]
    assert dataset.notes[0].endswith("accepted")


def test_alias_root_and_classes(tmp_path, small_voc):
    small_voc("2007")
    some = spec(
        "voc2007", root=str(tmp_path / "voc2007"), allow_counts=True, alias="photos", classes=("car", "cat")
    )
    dataset = open_dataset(some, Path("/nowhere"))
    assert dataset.name == "photos"
    assert dataset.classes == ("car", "cat")
    assert dataset.test.ids == ("000004",)


# -- arrays and JSON ---------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "VOCdevkit/VOC2012/JPEGImages/"])
def test_voc2012_arrays_in_both_published_forms(tmp_path, save_jpeg, prefix, save_arrays):
    root = tmp_path / "voc2012"
    for k in range(3):
        save_jpeg(root / "VOCdevkit" / "VOC2012" / "JPEGImages" / f"2008_00000{k}.jpg", k)
    names = [f"{prefix}2008_00000{k}.jpg" for k in (2, 0, 1)]
    save_arrays(root, {"train": names[:2], "val": names[2:]}, 20)
    dataset = open_dataset(spec("voc2012", allow_counts=True), tmp_path)
    assert dataset.train.ids == ("2008_000002", "2008_000000")  # the order of the array
    assert dataset.test.ids == ("2008_000001",)


def test_coco_arrays_and_json_give_the_same_dataset(tmp_path, save_jpeg, instances, build_coco, save_arrays):
    categories = {k + 1: name for k, name in enumerate(COCO)}
    splits = {"train2014": (9, 30, 100), "val2014": (7,)}
    for name, split in itertools.product(("arrays", "json"), splits):
        images = splits[split]
        content = instances({i: [2] for i in images}, categories)
        for image in content["images"]:
            image["file_name"] = f"COCO_{split}_{image['id']:012d}.jpg"
        build_coco(tmp_path / name, split, content)
    form = "{0}/COCO_{0}_{1:012d}.jpg".format
    save_arrays(
        tmp_path / "arrays",
        {
            "train": [form("train2014", i) for i in (100, 30, 9)],
            "val": [form("val2014", 7)],
        },
        80,
    )
    one, two = (
        open_dataset(spec("coco2014", root=str(tmp_path / name), allow_counts=True), tmp_path)
        for name in ("arrays", "json")
    )
    assert one.train.ids == two.train.ids == ("100", "30", "9")  # sorted as strings
    assert one.digest == two.digest
    assert one.classes[1] == "bicycle"


def test_an_array_entry_without_cocos_number_is_named(tmp_path, save_arrays):
    save_arrays(tmp_path / "coco2014", {"train": ["COCO_train2014_9.jpg", "mine.jpg"]}, 80)
    with pytest.raises(UserError, match=r"train_images.npy: entry 1: 'mine.jpg' does not end in"):
        open_dataset(spec("coco2014"), tmp_path)


def test_nuswide_arrays_below_flickr(tmp_path, save_jpeg, save_arrays):
    root = tmp_path / "nuswide"
    names = ["actor/0001_1.jpg", "zebra/0002_2.jpg"]
    for k, name in enumerate(names):
        save_jpeg(root / "Flickr" / name, k)
    save_arrays(root, {"train": names[:1], "val": names[1:]}, 81)
    dataset = open_dataset(spec("nuswide", allow_counts=True), tmp_path)
    assert dataset.classes == NUS
    assert dataset.train.ids == ("actor/0001_1.jpg",)
    with pytest.raises(UserError, match=r"1 training and 1 test .* 150,000 and 60,260"):
        open_dataset(spec("nuswide"), tmp_path)
