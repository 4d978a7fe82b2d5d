from __future__ import annotations

import json

import pytest

from benchmarks.data.readers.coco import read_instances, read_pair
from methods.errors import UserError

CATEGORIES = {18: "dog", 1: "person", 90: "toothbrush"}  # ids with gaps, not in order


@pytest.fixture
def content(instances):
    return instances({10: [1, 1, 90], 9: [18], 100: [], 25: [1]}, CATEGORIES)


def test_labels_order_and_dropped_images(tmp_path, build_coco, content):
    classes, images = read_instances(*build_coco(tmp_path, "train", content))
    assert classes == ("dog", "person", "toothbrush")  # position in `categories`
    assert images.ids == ("10", "25", "9")  # sorted as strings; 100 has no annotation
    assert images.labels.tolist() == [[0, 1, 1], [0, 1, 0], [1, 0, 0]]
    assert [path.name for path in images.paths] == ["000010.jpg", "000025.jpg", "000009.jpg"]


def test_order_of_the_file_does_not_matter(tmp_path, build_coco, content):
    one = read_instances(*build_coco(tmp_path / "a", "train", content))[1]
    content["images"].reverse()
    content["annotations"].reverse()
    two = read_instances(*build_coco(tmp_path / "b", "train", content))[1]
    assert one.ids == two.ids
    assert (one.labels == two.labels).all()


def test_a_byte_order_mark_is_read(tmp_path, build_coco, content):
    file, folder = build_coco(tmp_path, "train", content)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(read_instances(file, folder)[1]) == 3


def change(key, position, **fields):
    def apply(content):
        content[key][position].update(fields)

    return apply


def without(key, position, field):
    def apply(content):
        del content[key][position][field]

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("annotations", 2, image_id=77), r"annotations\[2\].image_id: .*id 77"),
        (change("annotations", 0, category_id=2), r"annotations\[0\].category_id: .*id 2"),
        (without("annotations", 1, "category_id"), r"annotations\[1\].category_id: missing"),
        (change("images", 1, id=10), r"images\[1\].id: 10 is listed twice"),
        (change("images", 1, id="10"), r"images: two ids are the same when written as text"),
        (without("images", 0, "file_name"), r"images\[0\].file_name: missing"),
        (change("images", 0, file_name="../x.jpg"), r"images\[0\].file_name: '../x.jpg' is not a"),
        (change("images", 0, file_name="/x.jpg"), r"images\[0\].file_name: '/x.jpg' is not a"),
        (change("images", 3, file_name="gone.jpg"), r"1 of 3 images are not on disk.*gone.jpg"),
        (change("categories", 1, id=18), r"categories\[1\].id: 18 is listed twice"),
        (change("categories", 1, name="dog"), r"categories\[1\].name: 'dog'"),
        (lambda c: c.pop("annotations"), r"field 'annotations' is missing"),
        (lambda c: c.update(images={}), r"field 'images' is missing or not a list"),
        (lambda c: c["images"].append(7), r"images\[4\].id: missing"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(tmp_path, build_coco, content, damage, message):
    file, folder = build_coco(tmp_path, "train", content)
    damage(content)
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        read_instances(file, folder)
    assert "instances_train.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"images": [', r"not valid JSON at line 1 column 13"),
        (b"", r"not valid JSON at line 1 column 1"),
        (b"[]", r"a list where an object is expected"),
        (b"\xff\xfe", r"not UTF-8 text at byte 0"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, message):
    file = tmp_path / "instances_train.json"
    file.write_bytes(text)
    with pytest.raises(UserError, match=f"instances_train.json: {message}"):
        read_instances(file, tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"instances_train.json: no such file"):
        read_instances(tmp_path / "instances_train.json", tmp_path)


def test_both_splits_need_the_same_categories(tmp_path, build_coco, instances, content):
    train = build_coco(tmp_path, "train", content)
    test = build_coco(tmp_path, "test", instances({1: [1]}, {18: "dog", 1: "people", 90: "x"}))
    with pytest.raises(UserError, match=r"categories\[1\].name: 'people', but 'person' in"):
        read_pair(train, test)
    shorter = build_coco(tmp_path, "test", instances({1: [1]}, {18: "dog", 1: "person"}))
    with pytest.raises(UserError, match=r"categories\[2\].name: None, but 'toothbrush' in"):
        read_pair(train, shorter)


# -- options -----------------------------------------------------------------------------------


def test_images_without_an_annotation_are_kept_when_asked_for(tmp_path, build_coco, content):
    images = read_instances(*build_coco(tmp_path, "train", content), empty="keep")[1]
    assert images.ids == ("10", "100", "25", "9")
    assert images.labels.tolist() == [[0, 1, 1], [0, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_the_order_of_the_file_is_kept_when_asked_for(tmp_path, build_coco, content):
    images = read_instances(*build_coco(tmp_path, "train", content), order="file")[1]
    assert images.ids == ("10", "9", "25")
    assert images.labels.tolist() == [[0, 1, 1], [1, 0, 0], [0, 1, 0]]
    assert [path.name for path in images.paths] == ["000010.jpg", "000009.jpg", "000025.jpg"]


def test_of_several_folders_the_one_with_the_first_image_is_taken(tmp_path, build_coco, content):
    file, folder = build_coco(tmp_path, "train", content)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert read_instances(file, [empty, folder])[1].paths[0].parent == folder
    with pytest.raises(UserError, match=r"3 of 3 images are not on disk, such as .*/empty/0"):
        read_instances(file, [empty, tmp_path])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("images", 0, file_name="\ud800.jpg"), r"images\[0\].file_name: .* is not a path"),
        (change("images", 0, file_name="a\nb.jpg"), r"images\[0\].file_name: .* is not a path"),
        (change("images", 0, id="\ud800"), r"images\[0\].id: .* is not a name"),
        (change("categories", 0, name="\udfff"), r"categories\[0\].name: .* is not a name"),
        (change("categories", 0, name=" "), r"categories\[0\].name: ' ' is not a name"),
        (change("annotations", 3, image_id=[9]), r"annotations\[3\].image_id: missing, or"),
        (lambda c: c["annotations"].append([]), r"annotations\[5\].image_id: missing"),
    ],
)
def test_what_cannot_be_a_name_is_refused(tmp_path, build_coco, content, damage, message):
    file, folder = build_coco(tmp_path, "train", content)
    damage(content)
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        read_instances(file, folder)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"images": [{"id": ' + "1" * 5000 + "}]}"])
def test_monstrous_json_is_no_traceback(tmp_path, text):
    file = tmp_path / "instances_train.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"instances_train.json: not an instances file"):
        read_instances(file, tmp_path)


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read: Is a directory"):
        read_instances(tmp_path, tmp_path)
