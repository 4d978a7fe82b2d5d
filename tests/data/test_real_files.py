"""Readers on real photographs, where `SSMLL_TEST_DATA` names a folder that has them."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data.readers.class_names import COCO, VOC
from benchmarks.data.registry import DatasetSpec, open_dataset
from methods.errors import UserError


def spec(name, **fields):
    return DatasetSpec(name=name, **fields)


def real_data(*parts):
    folder = os.environ.get("SSMLL_TEST_DATA", "")
    path = Path(folder, *parts)
    if not folder or not path.exists():
        pytest.skip(f"set SSMLL_TEST_DATA to a folder that holds {'/'.join(parts)} to run this")
    return path


def test_real_voc_photographs():
    root = real_data("voc2007-subset")
    frequent = ("bicycle", "bus", "car", "cat", "chair", "dog", "motorbike", "person", "sofa", "train")
    with pytest.raises(UserError, match="996 training and 1,011 test"):
        open_dataset(spec("voc2007", root=str(root)), Path("."))
    whole = open_dataset(spec("voc2007", root=str(root), allow_counts=True), Path("."))
    assert (len(whole.train), len(whole.test)) == (996, 1011)
    some = open_dataset(spec("voc2007", root=str(root), allow_counts=True, classes=frequent), Path("."))
    assert some.classes == frequent
    # counted independently, by reading the lists line by line
    lists = root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    for k, name in enumerate(frequent):
        lines = (lists / f"{name}_test.txt").read_text().splitlines()
        assert some.test.labels[:, k].sum() == sum(line.split()[1] == "1" for line in lines)


def test_real_coco_photographs(tmp_path):
    root = real_data("coco256")
    names = {split: f"annotations/instances_{split}2017.json" for split in ("train", "val")}
    some = spec("coco", root=str(root), train=names["train"], test=names["val"], alias="coco256")
    dataset = open_dataset(some, tmp_path)
    assert dataset.classes == COCO
    assert (len(dataset.train), len(dataset.test)) == (126, 128)  # two have no object
    assert list(dataset.train.ids) == sorted(dataset.train.ids)
    assert dataset.train.paths[0].parent == root / "train2017"
    # counted independently, annotation by annotation
    content = json.loads((root / names["val"]).read_text())
    category = {entry["id"]: entry["name"] for entry in content["categories"]}
    pairs = {(a["image_id"], category[a["category_id"]]) for a in content["annotations"]}
    assert dataset.test.labels.sum() == len(pairs)
    for name, column in zip(dataset.classes, dataset.test.labels.T, strict=True):
        found = {dataset.test.ids[k] for k in column.nonzero()[0]}
        assert found == {str(image) for image, other in pairs if other == name}
    kept = open_dataset(dataclasses.replace(some, empty="keep"), tmp_path)
    assert (len(kept.train), len(kept.test)) == (128, 128)


@pytest.mark.parametrize("form", ["list", "columns"])
def test_real_photographs_listed_in_a_csv(tmp_path, form):
    """The lists of VOC, written as a user would, give the labels that VOC's reader gives."""
    root = real_data("voc2007-subset")
    wanted = open_dataset(spec("voc2007", root=str(root), allow_counts=True), tmp_path)
    lists = root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    with open(tmp_path / "labels.csv", "w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", *(["labels"] if form == "list" else VOC), "split"])
        for split, part in (("trainval", "train"), ("test", "test")):
            values = {}
            for name in VOC:
                for line in (lists / f"{name}_{split}.txt").read_text().splitlines():
                    image, value = line.split()
                    values.setdefault(image, {})[name] = int(value == "1")
            for image in sorted(values):
                row = values[image]
                marks = [row[name] for name in VOC]
                listed = [";".join(name for name in reversed(VOC) if row[name])]
                writer.writerow([f"{image}.jpg", *(listed if form == "list" else marks), part])
    images = root / "VOCdevkit" / "VOC2007" / "JPEGImages"
    found = open_dataset(spec("csv", root=str(tmp_path), images=str(images)), tmp_path)
    assert found.classes == VOC
    for one, two in ((found.train, wanted.train), (found.test, wanted.test)):
        assert one.paths == two.paths
        assert np.array_equal(one.labels, two.labels)
