"""The rules that all readers share, tried on every reader that reads a user's own files."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pytest

from benchmarks.data.dataset import ImageSet
from benchmarks.data.readers.base import Contents
from benchmarks.data.readers.rules import check, class_name, joined_classes
from benchmarks.data.registry import DatasetSpec, open_dataset
from methods.errors import UserError

NFD = unicodedata.normalize("NFD", "Bär")


def coco(root, categories, images=(("0.jpg", 1),), annotated=(1,)):
    """An instances file for each split; image k of a split is annotated with the categories `annotated`."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split, start in (("train", 0), ("test", 100)):
        (root / "images" / split).mkdir(parents=True, exist_ok=True)
        entries = [{"id": start + number, "file_name": name} for name, number in images]
        for entry in entries:
            (root / "images" / split / entry["file_name"]).touch()
        annotations = [
            {"image_id": entry["id"], "category_id": number} for entry in entries for number in annotated
        ]
        content = {"images": entries, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return lambda: open_dataset(DatasetSpec("coco", root=str(root)), root / "none")


def table(root, text):
    root.mkdir(exist_ok=True)
    (root / "labels.csv").write_text(text, encoding="utf-8")
    for line in text.splitlines()[1:]:
        (root / line.split(",")[0]).touch()
    return lambda: open_dataset(DatasetSpec("csv", root=str(root)), root / "none")


def categories(*names):
    return [{"id": k, "name": name} for k, name in enumerate(names, 1)]


@pytest.mark.parametrize(
    "name", ["cat", " cat\u00a0", "traffic light", "no finding", "[x", "A", "été", "(a) b"]
)
def test_a_name_is_stripped_and_composed(name):
    assert class_name("here:", name) == unicodedata.normalize("NFC", name.strip())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is not a name in one line"),
        ("a\u2029b", "is not a name in one line"),
        ("a\x85b", "is not a name in one line"),
        ("a\tb", "is not a name in one line"),
        ("NaN", "is what programs write for nothing"),
        ("None", "is what programs write for nothing"),
        ("<NA>", "is what programs write for nothing"),
        ("[]", "is what programs write for nothing"),
        ("['cat', 'dog']", "looks like a list and not like a name; write cat;dog"),
        ('["cat"]', "looks like a list and not like a name; write cat"),
        ("('cat',)", "looks like a list"),
        ("{cat, dog}", "looks like a list"),
        ("'cat'", "looks like a list"),
    ],
)
def test_what_is_no_name_is_refused_by_every_reader(tmp_path, save_arrays, name, message):
    with pytest.raises(UserError, match=f"^here: .*{message}"):
        class_name("here:", name)
    with pytest.raises(UserError, match=r"instances_train.json: categories\[1\].name: .*" + message):
        coco(tmp_path / "coco", categories("cat", name))()
    if not name.strip() or "," in name:
        return
    quoted = name.replace('"', '""')
    for text, where in (
        (f'path,labels,split\n0.jpg,"{quoted}",train\n1.jpg,cat,test\n', r"labels.csv:2: class "),
        (f'path,split,"{quoted}"\n0.jpg,train,1\n1.jpg,test,1\n', r"labels.csv:1: column "),
    ):
        with pytest.raises(UserError, match=where + ".*" + message):
            table(tmp_path / "csv", text)()
    save_arrays(tmp_path / "npy", {"train": ["0.jpg"], "val": ["1.jpg"]}, 2)
    (tmp_path / "npy" / "classes.txt").write_text(f"cat\n{name}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"classes.txt:2: class .*" + message):
        open_dataset(DatasetSpec("npy", root=str(tmp_path / "npy")), tmp_path)


def test_names_equal_in_one_form_are_named_with_both_entries(tmp_path):
    assert coco(tmp_path / "a", categories(" Bär ", NFD + "in"))().classes == ("Bär", "Bärin")
    with pytest.raises(UserError, match=r"categories\[1\].name: 'Bär' is also categories\[0\].name"):
        coco(tmp_path / "b", categories("Bär ", NFD))()
    with pytest.raises(UserError, match=r"labels.csv:1: column 'Bär' is there twice"):
        table(tmp_path / "c", f"path,Bär,{NFD},split\n0.jpg,1,0,train\n")()


# -- cells with a separator that was not understood ----------------------------------------------


@pytest.mark.parametrize("separator", ["|", ",", "/", " ", "\t", ", ", " | "])
def test_cells_with_another_separator_are_named(tmp_path, separator):
    cells = [
        separator.join(labels) for labels in (("cat", "dog"), ("cat",), ("dog",), ("dog", "car"), ("car",))
    ]
    rows = [f'{k}.png,"{cell}",{"train" if k < 5 else "test"}' for k, cell in enumerate(cells * 2)]
    message = (
        r"labels.csv:2: class 'cat.+dog' "
        r"(looks like 2 classes separated by .*; write cat;dog or set separator = |is not a name)"
    )
    with pytest.raises(UserError, match=message) as caught:
        table(tmp_path, "\n".join(["path,labels,split", *rows]))()
    assert "\n" not in str(caught.value) or separator == "\t"  # one message; a tab is refused line by line


def test_what_a_separator_is():
    def first(*names):
        return joined_classes(dict.fromkeys(names, "here"))

    assert not first("hot dog", "dog", "cat")
    assert not first("tench, Tinca", "cougar, puma, mountain lion", "crane")
    assert not first("and/or", "TV|monitor")
    assert "3 classes separated by '|'" in first("a|b|c", "c")[0]  # with bars one part is enough
    assert "separated by '|'" in first("a|b", "b|c")[0]
    assert "separated by ','" in first("a,b", "b", "a")[0]


def test_names_that_only_look_joined_are_taken_from_a_list(tmp_path):
    text = "path,labels,split\n0.png,tree house,train\n1.png,tree;house,train\n2.png,tree,test\n"
    with pytest.raises(
        UserError, match=r"labels.csv:2: class 'tree house' .* list all classes in classes.txt"
    ):
        table(tmp_path, text)()
    (tmp_path / "classes.txt").write_text("tree house\ntree\nhouse\n")
    assert table(tmp_path, text)().classes == ("tree house", "tree", "house")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html>\n<title>Log in</title>", "an HTML page"),
        (b"PK\3\4" + bytes(40), "a ZIP archive"),
    ],
)
def test_what_stands_in_for_an_annotation_file_is_named(tmp_path, content, what):
    for name, file in (("csv", "labels.csv"), ("coco", "annotations/instances_train.json")):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(content)
        with pytest.raises(UserError, match=f"{file}: not .*: {what}"):
            open_dataset(DatasetSpec(name, root=str(tmp_path)), tmp_path / "none")


# -- one entry for each image --------------------------------------------------------------------


@pytest.mark.parametrize("second", ["0.jpg", "./0.jpg", ".//0.jpg"])
def test_a_file_with_two_ids_is_named_with_both(tmp_path, second):
    message = r"images\[2\].file_name: .* \(id 9\) is also images\[0\].file_name \(id 1\)"
    with pytest.raises(UserError, match=message):
        coco(tmp_path, categories("cat"), [("0.jpg", 1), ("1.jpg", 2), (second, 9)])()


def test_both_forms_of_a_file_s_name_are_one_file(tmp_path, save_arrays):
    with pytest.raises(UserError, match=r"images\[1\].file_name"):
        coco(tmp_path / "coco", categories("cat"), [("Bär.jpg", 1), (f"{NFD}.jpg", 2)])()
    save_arrays(tmp_path / "npy", {"train": ["Bär.jpg", f"{NFD}.jpg"], "val": ["1.jpg"]}, 2)
    (tmp_path / "npy" / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=r"formatted_train_images.npy: entry 1 .* is also entry 0"):
        open_dataset(DatasetSpec("npy", root=str(tmp_path / "npy")), tmp_path)


def test_no_reader_may_return_a_file_twice_or_an_unclean_name(tmp_path):
    one = ImageSet(("x", "y"), (tmp_path / "0.jpg",) * 2, np.ones((2, 1), np.uint8))
    with pytest.raises(UserError, match=r"0.jpg: the test images 'x' and 'y' are this one file"):
        check(Contents(("cat",), one.take([0]), one), tmp_path)
    with pytest.raises(UserError, match=r"class 1: 'cat ' is also .*class 0"):
        check(Contents(("cat", "cat "), one.take([0]), one.take([1])), tmp_path)


# -- groups of categories ------------------------------------------------------------------------

PETS = [
    {"id": 0, "name": "pets", "supercategory": "none"},
    {"id": 1, "name": "cat", "supercategory": "pets"},
    {"id": 2, "name": "dog", "supercategory": "pets"},
]


def test_a_group_that_no_annotation_uses_is_left_out_with_a_note(tmp_path):
    dataset = coco(tmp_path, PETS, annotated=(1, 2))()
    assert dataset.classes == ("cat", "dog")
    assert dataset.train.labels.tolist() == [[1, 1]]
    (note,) = dataset.notes
    assert note.startswith("category 'pets' is left out: no annotation uses it")
    again = open_dataset(DatasetSpec("coco", root=str(tmp_path)), tmp_path / "none")
    assert (again.digest, again.notes) == (dataset.digest, dataset.notes)


def test_a_used_group_and_an_unused_class_stay(tmp_path):
    assert coco(tmp_path / "a", PETS, annotated=(0, 1))().classes == ("pets", "cat", "dog")
    plain = [{**entry, "supercategory": entry["name"]} for entry in PETS]  # as COCO's person
    assert coco(tmp_path / "b", plain, annotated=(1,))().classes == ("pets", "cat", "dog")


def test_a_group_with_the_name_of_its_only_class_is_left_out(tmp_path):
    twins = [
        {"id": 0, "name": "cat", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "cat"},
    ]
    assert coco(tmp_path / "a", twins, annotated=(1,))().classes == ("cat",)
    with pytest.raises(UserError, match=r"categories\[1\].name: 'cat' is also categories\[0\].name"):
        coco(tmp_path / "b", twins, annotated=(0, 1))()
