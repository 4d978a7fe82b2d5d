from __future__ import annotations

import itertools

import numpy as np
import pytest

from benchmarks.data.readers import voc
from benchmarks.data.readers.class_names import VOC
from benchmarks.data.readers.voc import find_tree, read_objects, read_split
from methods.errors import UserError

TRAINVAL = {
    "000012": {"car": 1, "person": 0},  # person only as a difficult object
    "000005": {"chair": 1, "person": 1},
    "000007": {"sofa": 0},  # nothing but a difficult object: dropped
    "000009": {},  # nothing at all: dropped
}


@pytest.fixture
def tree(tmp_path, build_voc):
    return build_voc(tmp_path, "2007", {"trainval": TRAINVAL})


def list_of(tree, name, split="trainval"):
    return tree / "ImageSets" / "Main" / f"{name}_{split}.txt"


def test_labels_order_and_dropped_images(tree):
    images, listed = read_split(tree, "trainval")
    assert listed == 4
    assert images.ids == ("000005", "000012")
    found = [[VOC[k] for k in row.nonzero()[0]] for row in images.labels]
    assert found == [["chair", "person"], ["car"]]
    assert images.paths[0] == tree / "JPEGImages" / "000005.jpg"


def test_classes_are_the_twenty_in_alphabetical_order():
    assert len(VOC) == 20
    assert list(VOC) == sorted(VOC)


def test_the_tree_is_found_wherever_it_was_unpacked(tmp_path, tree):
    for root in (tmp_path, tmp_path / "VOCdevkit", tree):
        assert find_tree(root, "2007") == tree
    assert find_tree(tmp_path, "2012") is None
    assert find_tree(tmp_path / "nowhere", "2007") is None


def test_windows_line_ends_and_a_byte_order_mark_are_read(tree):
    before = read_split(tree, "trainval")[0]
    for name in VOC:
        file = list_of(tree, name)
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    after = read_split(tree, "trainval")[0]
    assert after.ids == before.ids
    assert (after.labels == before.labels).all()


def test_a_missing_list_is_named(tree):
    list_of(tree, "tvmonitor").unlink()
    with pytest.raises(UserError, match=r"tvmonitor_trainval.txt: no such file"):
        read_split(tree, "trainval")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("000012 2", r":5: '000012 2' is not an image and 1, 0 or -1"),
        ("000012", r":5: '000012' is not an image and"),
        ("000012 1 1", r":5: '000012 1 1' is not an image and"),
        ("000012 1", r":5: image '000012' is listed twice"),
        ("../x 1", r":5: '../x' is not the name of an image"),
    ],
)
def test_a_wrong_line_is_named_with_its_number(tree, line, message):
    with open(list_of(tree, "cat"), "a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match="cat_trainval.txt" + message) as caught:
        read_split(tree, "trainval")
    assert "\n" not in str(caught.value)


def test_lists_that_disagree_are_named(tree):
    file = list_of(tree, "dog")
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match=r"aeroplane_trainval.txt: image '000012' is not in dog_"):
        read_split(tree, "trainval")
    with open(file, "a") as stream:
        stream.write("000012 -1\n000099 1\n")
    with pytest.raises(UserError, match=r"dog_trainval.txt: image '000099' is not in aeroplane_"):
        read_split(tree, "trainval")


def test_missing_images_are_counted_and_named(tree):
    (tree / "JPEGImages" / "000005.jpg").unlink()
    (tree / "JPEGImages" / "000009.jpg").unlink()  # not used, not missed
    with pytest.raises(UserError, match=r"1 of 2 images are not on disk, such as .*000005.jpg"):
        read_split(tree, "trainval")


# -- options -----------------------------------------------------------------------------------


def found(images):
    return {
        name: {VOC[k] for k in row.nonzero()[0]} for name, row in zip(images.ids, images.labels, strict=True)
    }


def test_difficult_objects_count_when_asked_for(tree):
    images, listed = read_split(tree, "trainval", difficult="positive")
    assert listed == 4
    assert found(images) == {
        "000005": {"chair", "person"},
        "000007": {"sofa"},
        "000012": {"car", "person"},
    }


def test_images_without_a_label_are_kept_when_asked_for(tree):
    images, _ = read_split(tree, "trainval", empty="keep")
    assert images.ids == ("000005", "000007", "000009", "000012")
    assert images.labels.sum(axis=1).tolist() == [2, 0, 0, 1]
    (tree / "JPEGImages" / "000009.jpg").unlink()  # now it is missed
    with pytest.raises(UserError, match=r"1 of 4 images are not on disk, such as .*000009.jpg"):
        read_split(tree, "trainval", empty="keep")


@pytest.mark.parametrize("labels", ["lists", "xml"])
def test_the_order_of_the_file_is_kept_when_asked_for(tree, labels):
    images = read_split(tree, "trainval", order="file", labels=labels)[0]
    assert images.ids == ("000012", "000005")
    assert found(images) == {"000012": {"car"}, "000005": {"chair", "person"}}


def test_lists_and_xml_give_the_same_labels(tmp_path, build_voc):
    rng = np.random.default_rng(0)
    splits = {"trainval": {}, "test": {}}
    for k, split in itertools.product(range(12), splits):
        # half of the images have objects, a third of those difficult ones only
        some = rng.choice(VOC, size=rng.integers(0, 5) * (k % 2), replace=False)
        splits[split][f"{split}{rng.integers(10**6):06d}"] = {
            str(name): int(rng.random() < 0.67) for name in some
        }
    tree = build_voc(tmp_path, "2007", splits)
    options = itertools.product(("ignore", "positive"), ("drop", "keep"), ("published", "file"))
    for split, (difficult, empty, order) in itertools.product(splits, options):
        given = {"difficult": difficult, "empty": empty, "order": order}
        one, two = (read_split(tree, split, labels=labels, **given) for labels in ("lists", "xml"))
        assert one[1] == two[1] == 12
        assert (one[0].ids, one[0].paths) == (two[0].ids, two[0].paths)
        assert (one[0].labels == two[0].labels).all()
        # and both are what was asked for
        floor = 0 if difficult == "positive" else 1
        wanted = {
            image: {name for name, value in labels.items() if value >= floor}
            for image, labels in splits[split].items()
        }
        kept = {image: names for image, names in wanted.items() if names or empty == "keep"}
        assert found(one[0]) == kept
        assert list(one[0].ids) == (list(kept) if order == "file" else sorted(kept))


def test_no_xml_is_opened_for_lists(tree, monkeypatch):
    for file in (tree / "Annotations").iterdir():
        file.write_text("<not xml")
    monkeypatch.setattr(voc, "read_objects", lambda file: pytest.fail("XML was opened"))
    assert len(read_split(tree, "trainval")[0]) == 2


# -- XML ---------------------------------------------------------------------------------------


def test_objects_of_an_annotation(tree):
    file = tree / "Annotations" / "000012.xml"
    # a car that is not difficult between two that are, and a difficult person; parts are no objects
    assert read_objects(file) == [
        ("car", True),
        ("car", False),
        ("car", True),
        ("person", True),
    ]
    text = file.read_text().replace("\t\t<difficult>1</difficult>\n", "")  # as in early files
    file.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read_objects(file) == [("car", False)] * 3 + [("person", False)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: "", r":1: not valid XML: no element found"),
        (lambda text: text[:-8], r":\d+: not valid XML: unclosed token"),
        (lambda text: text.replace("</object>", "", 1), r":\d+: not valid XML: mismatched tag"),
        (
            lambda text: text.replace("<name>car<", "<name>cars<"),
            r":5: object of class 'cars'; did you mean 'car'\?",
        ),
        (lambda text: text.replace("<difficult>1<", "<difficult>yes<"), r":7: difficult is 'yes'"),
        (lambda text: text.replace("<name>car</name>", ""), r":13: an object without a name"),
        (lambda text: text.replace("annotation", "annotations"), r":1: <annotations> where"),
        (lambda text: "\0" + text, r":1: not valid XML"),
        (lambda text: '<?xml version="1.0" encoding="klingon"?>' + text, r": not valid XML"),
    ],
)
def test_a_wrong_annotation_is_named_with_its_line(tree, damage, message):
    file = tree / "Annotations" / "000012.xml"
    file.write_text(damage(file.read_text()))
    with pytest.raises(UserError, match="000012.xml" + message) as caught:
        read_split(tree, "trainval", labels="xml")
    assert "\n" not in str(caught.value)


def test_a_missing_annotation_is_named(tree):
    (tree / "Annotations" / "000009.xml").unlink()
    with pytest.raises(UserError, match=r"000009.xml: no such file; .*labels = 'lists'"):
        read_split(tree, "trainval", labels="xml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("000012", r":5: image '000012' is listed twice"),
        ("000099 1", r":5: '000099 1' is not the name of an image"),
        ("../000099", r":5: '../000099' is not the name of an image"),
    ],
)
def test_a_wrong_line_of_the_split_is_named(tree, line, message):
    with open(tree / "ImageSets" / "Main" / "trainval.txt", "a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match="trainval.txt" + message):
        read_split(tree, "trainval", labels="xml")


def test_without_the_list_of_the_split_xml_cannot_be_read(tree):
    (tree / "ImageSets" / "Main" / "trainval.txt").unlink()
    assert len(read_split(tree, "trainval")[0]) == 2
    with pytest.raises(UserError, match=r"trainval.txt: no such file; unpack"):
        read_split(tree, "trainval", labels="xml")
