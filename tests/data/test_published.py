"""What published results rest on: the classic counts of images, and the digests of datasets."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.data.readers.class_names import COCO, VOC
from benchmarks.data.registry import DatasetSpec, open_dataset
from methods.errors import UserError


def spec(name, **fields):
    return DatasetSpec(name=name, **fields)


COUNTED = {
    "coco2014": (82_783, 82_081, 40_504, 40_137),  # images of the file, and those with objects
    "voc2007": (5_011, 5_011, 4_952, 4_952),
    "voc2012": (5_717, 5_717, 5_823, 5_823),
    "nuswide": (150_000, 150_000, 60_260, 60_260),
}


def accept_every_file(monkeypatch):
    for module in ("coco", "npy", "voc"):
        place = f"benchmarks.data.readers.{module}.check_files"
        monkeypatch.setattr(place, lambda paths, *words, **options: paths)


@pytest.mark.parametrize("name", COUNTED)
def test_the_classic_counts_of_arrays_are_accepted_without_a_note(tmp_path, name, monkeypatch):
    root = tmp_path / name
    root.mkdir()
    classes = {"coco2014": 80, "nuswide": 81}.get(name, 20)
    train, labelled, test, test_labelled = COUNTED[name]
    for split, first, count, some in (("train", 0, train, labelled), ("val", 500_000, test, test_labelled)):
        labels = np.zeros((count, classes), dtype=np.uint8)
        labels[:some, 3] = 1
        np.save(root / f"formatted_{split}_labels.npy", labels)
        names = np.char.add(np.arange(first, first + count).astype("U6"), ".jpg")
        np.save(root / f"formatted_{split}_images.npy", names)
    accept_every_file(monkeypatch)
    dataset = open_dataset(spec(name), tmp_path)
    assert dataset.notes == ()
    assert (len(dataset.train), len(dataset.test)) == (labelled, test_labelled)
    if name == "coco2014":  # counts refer to the copy, before images are dropped
        kept = open_dataset(spec(name, empty="keep"), tmp_path)
        assert (len(kept.train), len(kept.test), kept.notes) == (train, test, ())


def test_the_classic_counts_of_coco_json_are_accepted_without_a_note(tmp_path, monkeypatch):
    root = tmp_path / "coco2014"
    (root / "annotations").mkdir(parents=True)
    train, labelled, test, test_labelled = COUNTED["coco2014"]
    for split, count, some in (("train", train, labelled), ("val", test, test_labelled)):
        content = {
            "categories": [{"id": k, "name": name} for k, name in enumerate(COCO)],
            "images": [{"id": k, "file_name": f"{k}.jpg"} for k in range(count)],
            "annotations": [{"image_id": k, "category_id": k % 80} for k in range(some)],
        }
        (root / "annotations" / f"instances_{split}2014.json").write_text(json.dumps(content))
    accept_every_file(monkeypatch)
    dataset = open_dataset(spec("coco2014"), tmp_path)
    assert dataset.notes == ()
    assert (len(dataset.train), len(dataset.test)) == (labelled, test_labelled)
    assert dataset.train.ids[:4] == ("0", "1", "10", "100")
    (root / "annotations" / "instances_val2014.json").write_text(
        json.dumps({**content, "annotations": content["annotations"][:-1]})
    )
    with pytest.raises(UserError, match=r"82,081 training and 40,136 test .* 82,081 and 40,137"):
        open_dataset(spec("coco2014"), tmp_path)


@pytest.mark.parametrize(
    ("year", "splits", "counts"),
    [("2007", ("trainval", "test"), (5011, 4952)), ("2012", ("train", "val"), (5717, 5823))],
)
def test_the_classic_counts_are_accepted_without_a_note(
    tmp_path, small_voc, year, splits, counts, monkeypatch
):
    tree = small_voc(year)
    for split, count in zip(splits, counts, strict=True):
        for name in VOC:
            value = 1 if name == "person" else -1
            lines = (f"{split}{k:06d} {value:2d}\n" for k in range(count))
            (tree / "ImageSets" / "Main" / f"{name}_{split}.txt").write_text("".join(lines))
    monkeypatch.setattr("benchmarks.data.readers.voc.check_files", lambda paths, where: paths)
    dataset = open_dataset(spec(f"voc{year}"), tmp_path)
    assert (len(dataset.train), len(dataset.test)) == counts
    assert dataset.notes == ()


def test_digests_of_published_results_stay(tmp_path, build_voc, build_coco, instances, save_jpeg):
    """As computed by the readers of commit f02a263; committed results are named after them."""
    build_voc(
        tmp_path / "voc2007",
        "2007",
        {
            "trainval": {
                "000012": {"car": 1, "person": 0},
                "000005": {"chair": 1, "person": 1},
                "000007": {"sofa": 0},
                "000009": {},
            },
            "test": {"000004": {"diningtable": 1}, "000001": {"dog": 1, "tvmonitor": 1}},
        },
    )
    categories = {k + 1: name for k, name in enumerate(COCO)}
    for split, images in {
        "train2014": {9: [1, 1, 80], 30: [18], 100: [], 25: [2]},
        "val2014": {7: [3], 1000: [4, 5]},
    }.items():
        build_coco(tmp_path / "coco2014", split, instances(images, categories))
    root = tmp_path / "nuswide"
    for split, names in {
        "train": ["zebra/0002_2.jpg", "actor\\0001_1.jpg", "sky/3.jpg"],
        "val": ["sea/0004_4.jpg"],
    }.items():
        for k, name in enumerate(names):
            save_jpeg(root / "Flickr" / name.replace("\\", "/"), k)
        labels = np.zeros((len(names), 81))
        labels[0, 3] = labels[-1, 80] = 1
        np.save(root / f"formatted_{split}_images.npy", np.array(names))
        np.save(root / f"formatted_{split}_labels.npy", labels)
    some = spec("voc2007", classes=("car", "dog", "tvmonitor"), alias="some", allow_counts=True)
    digests = {
        "voc2007": "a5909a424919b536e9097308d46098f3ed997529cb0de59fc757881faa5511e4",
        "coco2014": "abc8ed18c1d9939110cb7f3698acf53e07f32b9a18ac5cf8b5c971c415047fd5",
        "nuswide": "6d60b2193e771192065d24f34343b19222620efdbceb8185edffa9e6708b2b85",
        some: "ea31b2fc365616f1326315c7ca7b2b0baa824b15591ddefc99b6c664c3471963",
    }
    for name, digest in digests.items():
        wanted = name if name is some else spec(name, allow_counts=True)
        assert open_dataset(wanted, tmp_path).digest == digest
