from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data import registry
from benchmarks.data.names import COCO, NUS, VOC
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


# -- VOC ---------------------------------------------------------------------------------------

IMAGES = {
    "2007": ("trainval", "test"),
    "2012": ("train", "val"),
}


@pytest.fixture
def voc(tmp_path, build_voc):
    def build(year):
        train, test = IMAGES[year]
        return build_voc(tmp_path / f"voc{year}", year, {
            train: {"000001": {"car": 1, "diningtable": 1}, "000002": {"cat": 1}, "000003": {}},
            test: {"000004": {"car": 1}, "000005": {"dog": 1}},
        })  # fmt: skip

    return build


@pytest.mark.parametrize("year", ["2007", "2012"])
def test_voc_reads_the_published_splits(tmp_path, voc, year):
    voc(year)
    dataset = open_dataset(spec(f"voc{year}", allow_counts=True), tmp_path)
    assert dataset.name == f"voc{year}"
    assert dataset.classes == VOC
    assert "dining table" in dataset.prompts
    assert "tv monitor" in dataset.prompts
    assert dataset.train.ids == ("000001", "000002")
    assert dataset.test.ids == ("000004", "000005")


def test_counts_that_are_not_the_classic_ones_are_refused_or_noted(tmp_path, voc):
    voc("2007")
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


@pytest.mark.parametrize(("year", "counts"), [("2007", (5011, 4952)), ("2012", (5717, 5823))])
def test_the_classic_counts_are_accepted_without_a_note(tmp_path, voc, year, counts, monkeypatch):
    tree = voc(year)
    for split, count in zip(IMAGES[year], counts, strict=True):
        for name in VOC:
            value = 1 if name == "person" else -1
            lines = (f"{split}{k:06d} {value:2d}\n" for k in range(count))
            (tree / "ImageSets" / "Main" / f"{name}_{split}.txt").write_text("".join(lines))
    monkeypatch.setattr("benchmarks.data.voc.check_files", lambda paths, where: None)
    dataset = open_dataset(spec(f"voc{year}"), tmp_path)
    assert (len(dataset.train), len(dataset.test)) == counts
    assert dataset.notes == ()


def test_alias_root_and_classes(tmp_path, voc):
    voc("2007")
    some = spec("voc2007", root=str(tmp_path / "voc2007"), allow_counts=True, alias="photos",
                classes=("car", "cat"))  # fmt: skip
    dataset = open_dataset(some, Path("/nowhere"))
    assert dataset.name == "photos"
    assert dataset.classes == ("car", "cat")
    assert dataset.test.ids == ("000004",)


# -- arrays and JSON ---------------------------------------------------------------------------


def save_arrays(root, names, count):
    root.mkdir(parents=True, exist_ok=True)
    for split, some in names.items():
        labels = np.zeros((len(some), count))
        labels[:, 1] = 1
        np.save(root / f"formatted_{split}_images.npy", np.array(some))
        np.save(root / f"formatted_{split}_labels.npy", labels)


@pytest.mark.parametrize("prefix", ["", "VOCdevkit/VOC2012/JPEGImages/"])
def test_voc2012_arrays_in_both_published_forms(tmp_path, save_jpeg, prefix):
    root = tmp_path / "voc2012"
    for k in range(3):
        save_jpeg(root / "VOCdevkit" / "VOC2012" / "JPEGImages" / f"2008_00000{k}.jpg", k)
    names = [f"{prefix}2008_00000{k}.jpg" for k in (2, 0, 1)]
    save_arrays(root, {"train": names[:2], "val": names[2:]}, 20)
    dataset = open_dataset(spec("voc2012", allow_counts=True), tmp_path)
    assert dataset.train.ids == ("2008_000002", "2008_000000")  # the order of the array
    assert dataset.test.ids == ("2008_000001",)


def test_coco_arrays_and_json_give_the_same_dataset(tmp_path, save_jpeg, instances, build_coco):
    categories = {k + 1: name for k, name in enumerate(COCO)}
    splits = {"train2014": (9, 30, 100), "val2014": (7,)}
    for name, split in itertools.product(("arrays", "json"), splits):
        images = splits[split]
        content = instances({i: [2] for i in images}, categories)
        for image in content["images"]:
            image["file_name"] = f"COCO_{split}_{image['id']:012d}.jpg"
        build_coco(tmp_path / name, split, content)
    form = "{0}/COCO_{0}_{1:012d}.jpg".format
    save_arrays(tmp_path / "arrays", {
        "train": [form("train2014", i) for i in (100, 30, 9)], "val": [form("val2014", 7)],
    }, 80)  # fmt: skip
    one, two = (
        open_dataset(spec("coco2014", root=str(tmp_path / name), allow_counts=True), tmp_path)
        for name in ("arrays", "json")
    )
    assert one.train.ids == two.train.ids == ("100", "30", "9")  # sorted as strings
    assert one.digest == two.digest
    assert one.classes[1] == "bicycle"


def test_nuswide_arrays_below_flickr(tmp_path, save_jpeg):
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


# -- the embedded dataset ----------------------------------------------------------------------


def test_glyphscenes_is_rendered_once_on_demand(tmp_path, build_coco, instances, monkeypatch):
    from benchmarks.data import glyphscenes

    calls = []

    def write(root, *, seed, workers, progress):
        calls.append((seed, workers))
        folder = root / "glyphscenes"
        content = instances({1: [1], 2: [2]}, {1: "cat", 2: "dog"})
        for split in ("train", "test"):
            images = build_coco(folder, split, content)[1]
            (folder / "images").mkdir(exist_ok=True)
            images.rename(folder / "images" / split)
        progress(4, 4)
        return folder

    monkeypatch.setattr(glyphscenes, "write", write)
    seen = []
    dataset = open_dataset(
        spec("glyphscenes"), tmp_path / "data", progress=lambda *a: seen.append(a), workers=1
    )
    assert dataset.classes == ("cat", "dog")
    assert seen == [(4, 4)]
    assert calls == [(0, 1)]  # published results use seed 0


def test_another_version_of_glyphscenes_is_a_clear_error(tmp_path, monkeypatch):
    from benchmarks.data import glyphscenes

    def write(root, **options):
        raise ValueError("holds GlyphScenes version 0")

    monkeypatch.setattr(glyphscenes, "write", write)
    with pytest.raises(UserError, match="version 0"):
        open_dataset(spec("glyphscenes"), tmp_path)


def test_a_script_without_its_main_guard_ends_with_a_clear_error(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from benchmarks.data.registry import DatasetSpec, open_dataset\n"
        f"open_dataset(DatasetSpec('glyphscenes'), Path({str(tmp_path)!r}), workers=2)\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    assert ended.returncode != 0
    assert "a rendering process died" in ended.stderr.splitlines()[-1]
    assert "put its work under `if __name__ == '__main__':`" in ended.stderr


# -- real files --------------------------------------------------------------------------------


def real_data(*parts):
    folder = os.environ.get("SSMLL_TEST_DATA", "")
    path = Path(folder, *parts)
    if not folder or not path.exists():
        pytest.skip(f"set SSMLL_TEST_DATA to a folder that holds {'/'.join(parts)} to run this")
    return path


def test_real_voc_photographs():
    root = real_data("voc2007-subset")
    frequent = ("bicycle", "bus", "car", "cat", "chair", "dog", "motorbike", "person", "sofa",
                "train")  # fmt: skip
    with pytest.raises(UserError, match="996 training and 1,011 test"):
        open_dataset(spec("voc2007", root=str(root)), Path("."))
    whole = open_dataset(spec("voc2007", root=str(root), allow_counts=True), Path("."))
    assert (len(whole.train), len(whole.test)) == (996, 1011)
    some = open_dataset(
        spec("voc2007", root=str(root), allow_counts=True, classes=frequent), Path(".")
    )
    assert some.classes == frequent
    # counted independently, by reading the lists line by line
    lists = root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    for k, name in enumerate(frequent):
        lines = (lists / f"{name}_test.txt").read_text().splitlines()
        assert some.test.labels[:, k].sum() == sum(line.split()[1] == "1" for line in lines)


def test_real_coco_photographs():
    root = real_data("coco256")
    from benchmarks.data.coco import read_pair

    classes, train, test = read_pair(
        *((root / "annotations" / f"instances_{split}.json", root / split)
          for split in ("train2017", "val2017"))
    )  # fmt: skip
    assert classes == COCO
    assert (len(train), len(test)) == (126, 128)  # two training images have no object
    assert list(train.ids) == sorted(train.ids)
    assert registry.available()
