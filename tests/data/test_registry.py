from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
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


# -- VOC ---------------------------------------------------------------------------------------

IMAGES = {
    "2007": ("trainval", "test"),
    "2012": ("train", "val"),
}


@pytest.fixture
def voc(tmp_path, build_voc):
    def build(year):
        train, test = IMAGES[year]
        return build_voc(
            tmp_path / f"voc{year}",
            year,
            {
                train: {"000001": {"car": 1, "diningtable": 1}, "000002": {"cat": 1}, "000003": {}},
                test: {"000004": {"car": 1}, "000005": {"dog": 1}},
            },
        )

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
    monkeypatch.setattr("benchmarks.data.readers.voc.check_files", lambda paths, where: paths)
    dataset = open_dataset(spec(f"voc{year}"), tmp_path)
    assert (len(dataset.train), len(dataset.test)) == counts
    assert dataset.notes == ()


def test_alias_root_and_classes(tmp_path, voc):
    voc("2007")
    some = spec(
        "voc2007", root=str(tmp_path / "voc2007"), allow_counts=True, alias="photos", classes=("car", "cat")
    )
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


def test_an_array_entry_without_cocos_number_is_named(tmp_path):
    save_arrays(tmp_path / "coco2014", {"train": ["COCO_train2014_9.jpg", "mine.jpg"]}, 80)
    with pytest.raises(UserError, match=r"train_images.npy: entry 1: 'mine.jpg' does not end in"):
        open_dataset(spec("coco2014"), tmp_path)


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


COUNTED = {
    "coco2014": (82_783, 82_081, 40_504, 40_137),  # images of the file, and those with objects
    "voc2007": (5_011, 5_011, 4_952, 4_952),
    "voc2012": (5_717, 5_717, 5_823, 5_823),
    "nuswide": (150_000, 150_000, 60_260, 60_260),
}


def accept_every_file(monkeypatch):
    for module in ("coco", "npy", "voc"):
        monkeypatch.setattr(f"benchmarks.data.readers.{module}.check_files", lambda paths, where: paths)


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
    if name == "coco2014":  # the counts are of the copy, whatever is dropped or kept of it
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


# -- digests -----------------------------------------------------------------------------------


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


# -- the embedded dataset ----------------------------------------------------------------------


def test_glyphscenes_is_rendered_once_on_demand(tmp_path, build_coco, instances, monkeypatch):
    from benchmarks.data.glyphscenes import scenes as glyphscenes

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
    from benchmarks.data.glyphscenes import scenes as glyphscenes

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
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
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
