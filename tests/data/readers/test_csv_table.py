from __future__ import annotations

import csv
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data.readers.csv_table import find_files, read_files
from benchmarks.data.registry import DatasetSpec, open_dataset
from methods.errors import UserError

LISTED = """path,labels,split
b/1.jpg,dog;cat,train
a/2.jpg,cat,train
c/3.jpg,,train
a/4.jpg,dog,test
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with image files, empty ones: nothing here opens them."""
    for name in ("b/1.jpg", "a/2.jpg", "c/3.jpg", "a/4.jpg", "5.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def write(folder, text, name="labels.csv"):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


def read_one(folder, text=None, **options):
    if text is not None:
        write(folder, text)
    return read_files((folder / "labels.csv", None), **options)


def found(contents):
    """[(image, its classes)] of training and test images."""
    classes, *sets = contents
    return [
        [
            (name, {classes[k] for k in row.nonzero()[0]})
            for name, row in zip(images.ids, images.labels, strict=True)
        ]
        for images in sets
    ]


EXPECTED = [[("b/1.jpg", {"cat", "dog"}), ("a/2.jpg", {"cat"})], [("a/4.jpg", {"dog"})]]


def test_listed_labels(folder):
    contents = read_one(folder, LISTED)
    assert contents[0] == ("cat", "dog")  # alphabetical
    assert found(contents) == EXPECTED  # in the order of the lines
    assert contents[1].paths[0] == folder / "b" / "1.jpg"
    assert contents[1].labels.tolist() == [[1, 1], [1, 0]]


def test_images_without_a_label_are_kept_when_asked_for(folder):
    train, test = found(read_one(folder, LISTED, empty="keep"))
    assert train == [*EXPECTED[0], ("c/3.jpg", set())]
    assert test == EXPECTED[1]


COLUMNS = """path,split,dog,cat
b/1.jpg,train,1,1
a/2.jpg,train,0, 1
c/3.jpg,train,0,0
a/4.jpg,test,1,0
"""


def test_one_column_per_class(folder):
    contents = read_one(folder, COLUMNS)
    assert contents[0] == ("dog", "cat")  # the order of the columns
    assert found(contents) == EXPECTED
    assert len(read_one(folder, empty="keep")[1]) == 3


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + LISTED,
        LISTED.replace("\n", "\r\n"),
        LISTED.replace("\n", "\r"),
        LISTED.replace("path,labels", " Path , Label "),
        LISTED.replace("train", " Train ").replace("test", "TEST"),
        LISTED.replace("dog;cat", " dog ;; cat;dog; "),
        LISTED.replace("b/1.jpg", '"b/1.jpg"').replace("dog;cat", '"dog;cat"'),
        LISTED.replace("a/2.jpg", "a\\2.jpg").replace("a/4.jpg", "./a/4.jpg"),
        LISTED.replace("c/3", "\n,,\nc/3") + "\n \n",
        LISTED.rstrip(),
        "labels,split,path\n"
        + "".join(
            f"{labels},{split},{path}\n"
            for path, labels, split in (line.split(",") for line in LISTED.splitlines()[1:])
        ),
    ],
)
def test_how_programs_write_it(folder, text):
    assert found(read_one(folder, text)) == EXPECTED


def test_what_the_csv_module_writes_is_read_back(folder):
    """Quotes, commas and letters of all kinds."""
    images = ['a "quoted", name.jpg', "Übergröße/фото.jpg", "鳥 1.jpg", " .jpg", "'.jpg"]
    classes = ["dining table", 'the "cat"', "tench, Tinca", "été", "犬"]
    rng = np.random.default_rng(0)
    rows = []
    for image in images:
        name = image.strip()
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
        rows.append((name, {str(c) for c in rng.choice(classes, size=2, replace=False)}))
    for form in ("list", "columns"):
        with open(folder / "labels.csv", "w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["path", "split", *(["labels"] if form == "list" else classes)])
            for k, (name, labels) in enumerate(rows):
                cells = [";".join(labels)] if form == "list" else [int(c in labels) for c in classes]
                writer.writerow([name, "train" if k < 4 else "test", *cells])
        if form == "list":
            write(folder, "\n".join(classes), "classes.txt")
        else:
            (folder / "classes.txt").unlink()
        contents = read_one(folder)
        assert contents[0] == tuple(classes)
        assert found(contents) == [rows[:4], rows[4:]]


def test_two_files(folder):
    write(folder, "path,labels\nb/1.jpg,dog;cat\na/2.jpg,cat\n", "train.csv")
    write(folder, "path,cat,dog\na/4.jpg,0,1\n", "test.csv")  # the other form, another order
    contents = read_files((folder / "train.csv", folder / "test.csv"))
    assert found(contents) == EXPECTED
    write(folder, "path,labels,split\na/4.jpg,dog,test\n", "test.csv")
    assert found(read_files((folder / "train.csv", folder / "test.csv"))) == EXPECTED
    write(folder, "path,labels,split\na/4.jpg,dog,train\n", "test.csv")
    with pytest.raises(UserError, match=r"test.csv:2: split is 'train' in the file of the test"):
        read_files((folder / "train.csv", folder / "test.csv"))


def test_paths_are_relative_to_their_file_or_to_the_folder_of_images(folder):
    for split in ("one", "two"):
        (folder / split).mkdir()
        (folder / split / "same.jpg").touch()
        write(folder, "path,labels\nsame.jpg,cat\n", f"{split}/{split}.csv")
    files = (folder / "one" / "one.csv", folder / "two" / "two.csv")
    _, train, test = read_files(files)
    assert (train.paths[0], test.paths[0]) == tuple(file.parent / "same.jpg" for file in files)
    write(folder, "path,labels,split\n1.jpg,cat,train\n4.jpg,cat,test\n", "lists/labels.csv")
    (folder / "a" / "1.jpg").touch()
    _, train, test = read_files((folder / "lists" / "labels.csv", None), [folder / "a"])
    assert train.paths == (folder / "a" / "1.jpg",)
    assert train.ids == ("1.jpg",)


def test_classes_txt_gives_the_order(folder):
    write(folder, "dog\nunseen\ncat\n", "classes.txt")
    contents = read_one(folder, LISTED)
    assert contents[0] == ("dog", "unseen", "cat")
    assert found(contents) == EXPECTED
    assert contents[1].labels.shape == (2, 3)
    with pytest.raises(UserError, match=r"labels.csv:1: class 'unseen' has no column"):
        read_one(folder, COLUMNS)
    write(folder, "cat\ndog\n", "classes.txt")
    contents = read_one(folder)
    assert contents[0] == ("cat", "dog")
    assert found(contents) == EXPECTED
    write(folder, "cat\nrabbit\n", "classes.txt")
    with pytest.raises(UserError, match=r"labels.csv:2: class 'dog' is not in classes.txt; \(valid"):
        read_one(folder, LISTED)
    with pytest.raises(UserError, match=r"labels.csv:1: class 'dog' is not in classes.txt"):
        read_one(folder, COLUMNS)


def test_a_class_of_test_images_only_is_taken_for_a_mistake(folder):
    text = LISTED.replace("a/4.jpg,dog", "a/4.jpg,dgo")
    message = (
        r"labels.csv:5: class 'dgo' is a class of no training image; if it is meant, "
        r".*classes.txt; did you mean 'dog'"
    )
    with pytest.raises(UserError, match=message):
        read_one(folder, text)
    write(folder, "cat\ndog\ndgo\n", "classes.txt")
    assert found(read_one(folder))[1] == [("a/4.jpg", {"dgo"})]


def test_names_are_the_same_in_either_form_of_unicode(folder):
    def text(form):
        return unicodedata.normalize(form, "path,labels,split\né.jpg,Bär,train\n4.jpg,Bär,test\n")

    (folder / "4.jpg").touch()
    (folder / unicodedata.normalize("NFD", "é.jpg")).touch()  # as macOS packs it
    one, two = (read_one(folder, text(form)) for form in ("NFC", "NFD"))
    assert one[0] == two[0] == ("Bär",)
    assert one[1].ids == two[1].ids == ("é.jpg",)
    assert one[1].paths == two[1].paths
    assert one[1].paths[0].is_file()
    twice = text("NFC") + unicodedata.normalize("NFD", "é.jpg") + ",Bär,test\n"
    with pytest.raises(UserError, match=r"labels.csv:4: .* is also in line 2"):
        read_one(folder, twice)
    both = text("NFC").replace("4.jpg,Bär", unicodedata.normalize("NFD", "4.jpg,Bär"))
    assert read_one(folder, both)[0] == ("Bär",)


# -- wrong files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r": the file is empty; the header must be path,labels or"),
        ("\n\n", r": the file is empty"),
        ("path;labels;split\n", r":1: 'path;labels;split': the header must be path,labels"),
        ("b/1.jpg,dog;cat,train\n", r":1: 'b/1.jpg,dog;cat,train': the header must"),
        ("path,split\n", r":1: 'path,split': the header must"),
        ("labels,split\n", r":1: 'labels,split': the header must"),
        ("path,labels,split,cat\n", r":1: 'path,labels,split,cat': the header must"),
        ("path,labels,label,split\n", r":1: 'path,labels,label,split': the header must"),
        ("path,cat,dog,cat,split\n", r":1: column 'cat' is there twice"),
        ("path,cat,Path,split\n", r":1: column 'Path' is there twice"),
        ("path,cat,,split\n", r":1: column 3 has no name"),
        ("path,labels\n", r":1: there is no column split, .*train and test"),
        ("path,labels,split\n", r": no train image is listed"),
        (LISTED.replace(",test", ",train"), r": no test image is listed"),
        (LISTED.replace(",test", ",val"), r":5: split is 'val'; it must be train or test. Valid"),
        (LISTED.replace(",test", ",tset"), r":5: split is 'tset'; it must be train or test$"),
        (LISTED.replace("dog;cat", "dog,cat"), r":2: 4 fields where the header has 3; a text that"),
        (LISTED.replace(",cat,train", ",cat"), r":3: 2 fields where the header has 3"),
        (LISTED.replace("a/2.jpg", "b/1.jpg"), r":3: 'b/1.jpg' is also in line 2"),
        (LISTED.replace("a/4.jpg", "b/./1.jpg"), r":5: 'b/1.jpg' is also in line 2"),
        (LISTED.replace("a/2.jpg", "../2.jpg"), r":3: '../2.jpg' is not a path below the folder"),
        (LISTED.replace("a/2.jpg", "/a/2.jpg"), r":3: '/a/2.jpg' is not a path below the folder"),
        (LISTED.replace("a/2.jpg", " "), r":3: '' is not a path below"),
        (LISTED.replace("a/2.jpg", "a/x.jpg"), r": 1 of 2 images are not on disk, .*a/x.jpg"),
        (LISTED.replace("a/2.jpg", '"a/2.jpg'), r":3: not valid CSV: .*a double quote not closed"),
        (LISTED.replace("a/2.jpg", '"a"2.jpg'), r":3: not valid CSV: .*a double quote not closed"),
        (LISTED.replace("2.jpg,cat", '2.jpg,"ca\nt"'), r":3: class 'ca\\nt' is not a name"),
        (LISTED.replace("a/2.jpg,cat", "a/2.jpg,caf\xe9").encode("latin-1"), r":3: not UTF-8 text"),
        (LISTED.encode("utf-16"), r":1: not UTF-8 text; save the file as UTF-8"),
        (COLUMNS.replace("0, 1", "0,yes"), r":3: column 'cat' is 'yes'; it must be 0 or 1"),
        (COLUMNS.replace("0, 1", "0,"), r":3: column 'cat' is ''; it must be 0 or 1"),
        (COLUMNS.replace("a/4", '"\n"a/4'), r":5: not valid CSV"),
        (LISTED.replace("dog;cat", '"dog;\n\ncat"').replace(",test", ",x"), r":7: split is 'x'"),
        (b"\x89PNG\r\n\x1a\n\0\0", r":1: not UTF-8 text"),
    ],
)
def test_a_wrong_line_is_named_with_its_number(folder, text, message):
    with pytest.raises(UserError, match=r"labels.csv" + message) as caught:
        read_one(folder, text)
    assert "\n" not in str(caught.value)


def test_an_image_listed_in_both_files_is_named_with_both_lines(folder):
    write(folder, "path,labels\nb/1.jpg,cat\na/2.jpg,cat\n", "train.csv")
    write(folder, "path,labels\na/4.jpg,cat\na/2.jpg,cat\n", "test.csv")
    with pytest.raises(UserError, match=r"test.csv:3: 'a/2.jpg' is also in .*train.csv:3$"):
        read_files((folder / "train.csv", folder / "test.csv"))


def test_a_column_of_one_file_only_is_named(folder):
    write(folder, "path,cat,dog\nb/1.jpg,1,0\n", "train.csv")
    write(folder, "path,cat,dgo\na/4.jpg,1,0\n", "test.csv")
    files = (folder / "train.csv", folder / "test.csv")
    with pytest.raises(UserError, match=r"test.csv:1: class 'dgo' has no column in train.csv; did"):
        read_files(files)
    write(folder, "path,cat\na/4.jpg,1\n", "test.csv")
    with pytest.raises(UserError, match=r"test.csv:1: class 'dog' has no column"):
        read_files(files)
    write(folder, "path,labels\na/4.jpg,dgo\n", "test.csv")
    with pytest.raises(UserError, match=r"test.csv:2: class 'dgo' has no column in train.csv"):
        read_files(files)
    write(folder, "path,labels\nb/1.jpg,cat\n", "train.csv")
    write(folder, "path,cat,dog\na/4.jpg,1,0\n", "test.csv")
    with pytest.raises(UserError, match=r"test.csv:1: class 'dog' is a class of no training image"):
        read_files(files)


# -- which files -------------------------------------------------------------------------------


def test_files_are_looked_for(tmp_path):
    train, test, one = (tmp_path / f"{name}.csv" for name in ("train", "test", "labels"))
    assert find_files(tmp_path, "", "") is None
    assert find_files(tmp_path, "x.csv", "") == (tmp_path / "x.csv", None)
    assert find_files(tmp_path, "x.csv", "y/z.csv") == (
        tmp_path / "x.csv",
        tmp_path / "y" / "z.csv",
    )
    with pytest.raises(UserError, match=r"test = 'y.csv' needs train"):
        find_files(tmp_path, "", "y.csv")
    test.touch()
    with pytest.raises(UserError, match=r"train.csv: no such file; it belongs to .*test.csv"):
        find_files(tmp_path, "", "")
    one.touch()
    assert find_files(tmp_path, "", "") == (one, None)
    train.touch()
    assert find_files(tmp_path, "", "") == (train, test)


def test_a_folder_with_a_csv_is_a_dataset(folder):
    write(folder, LISTED)
    spec = DatasetSpec("csv", root=str(folder), alias="pets", prompts=(("cat", "small cat"),))
    dataset = open_dataset(spec, Path("/nowhere"))
    assert (dataset.name, dataset.classes) == ("pets", ("cat", "dog"))
    assert dataset.prompts == ("small cat", "dog")
    assert dataset.train.ids == ("b/1.jpg", "a/2.jpg")
    with pytest.raises(UserError, match=r"gone.csv: no such file"):
        open_dataset(DatasetSpec("csv", root=str(folder), train="gone.csv"), Path("/nowhere"))
    other = DatasetSpec("csv", root=str(folder), train="labels.csv", images=str(folder / "a"))
    with pytest.raises(UserError, match=r"labels.csv: 2 of 2 images are not on disk"):
        open_dataset(other, Path("/nowhere"))
