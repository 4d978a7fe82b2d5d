from __future__ import annotations

import pytest

from benchmarks.data.names import VOC
from benchmarks.data.voc import find_tree, read_split
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
