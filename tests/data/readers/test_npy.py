from __future__ import annotations

import numpy as np
import pytest

from benchmarks.data.readers import npy
from methods.errors import UserError

CLASSES = ("a", "b")


@pytest.fixture
def root(tmp_path, save_jpeg):
    names = ["z/2.jpg", "y/1.jpg", "x/3.jpg"]
    for k, name in enumerate(names):
        save_jpeg(tmp_path / "Flickr" / name, k)
    np.save(tmp_path / "formatted_train_images.npy", np.array(names))
    np.save(tmp_path / "formatted_train_labels.npy", np.array([[1.0, 0], [0, 0], [1, 1]]))
    return tmp_path


def read(root):
    return npy.read_split(root, "train", CLASSES, ["Flickr", "."])[0]


def test_the_order_of_the_arrays_is_kept_and_empty_rows_are_dropped(root):
    assert npy.present(root)
    images = read(root)
    assert images.ids == ("z/2.jpg", "x/3.jpg")
    assert images.labels.tolist() == [[1, 0], [1, 1]]
    assert images.labels.dtype == np.uint8
    assert images.paths[1] == root / "Flickr" / "x" / "3.jpg"


def test_backslashes_are_folders(root):
    np.save(root / "formatted_train_images.npy", np.array(["z\\2.jpg", "y\\1.jpg", "x\\3.jpg"]))
    assert read(root).ids == ("z/2.jpg", "x/3.jpg")


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        ("images", np.array([1, 2, 3]), r"images.npy: int64 \(3,\); texts of shape \(N,\)"),
        ("images", np.array(["z/2.jpg"]), r"labels.npy: float64 \(3, 2\); numbers of shape \(1, 2"),
        ("labels", np.zeros((3, 5)), r"labels.npy: float64 \(3, 5\); numbers of shape \(3, 2\)"),
        ("labels", np.array([["1", "0"]] * 3), r"labels.npy: <U1 \(3, 2\); numbers"),
        ("labels", np.array([[1, 0], [0, -1], [1, 1]]), r"labels.npy: .*-1.* at row 1 column 1"),
        ("labels", np.array([[1, 0], [0, np.nan], [1, 1]]), r"nan.* at row 1 column 1"),
        ("images", np.array(["z/2.jpg", "y/1.jpg", "z/2.jpg"]), r"entry 2 .* is also entry 0"),
        ("images", np.array(["z/2.jpg", "../y", "x/3.jpg"]), r"entry 1: '../y' is not a path"),
        ("images", np.array(["z/2.jpg", "y/1.jpg", "x/9.jpg"]), r"1 of 2 images are not on disk"),
    ],
)
def test_a_wrong_array_is_named(root, file, array, message):
    np.save(root / f"formatted_train_{file}.npy", array)
    with pytest.raises(UserError, match=message) as caught:
        read(root)
    assert "formatted_train_" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickled_cut_and_missing_arrays_are_named(root):
    file = root / "formatted_train_labels.npy"
    np.save(file, np.array([{}], dtype=object))
    with pytest.raises(UserError, match=r"train_labels.npy: not a plain NumPy array"):
        read(root)
    file.write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match=r"train_labels.npy: not a plain NumPy array"):
        read(root)
    file.write_bytes(b"")
    with pytest.raises(UserError, match=r"train_labels.npy: not a plain NumPy array"):
        read(root)
    file.unlink()
    with pytest.raises(UserError, match=r"train_labels.npy: no such file"):
        read(root)


def test_images_without_a_label_are_kept_when_asked_for(root):
    images, rows = npy.read_split(root, "train", CLASSES, ["Flickr"], empty="keep")
    assert rows == 3
    assert images.ids == ("z/2.jpg", "y/1.jpg", "x/3.jpg")
    assert images.labels.tolist() == [[1, 0], [0, 0], [1, 1]]


@pytest.mark.parametrize("kind", [np.bool_, np.int8, np.uint64, np.float16, np.float64])
def test_every_type_of_number_is_read(root, kind):
    np.save(root / "formatted_train_labels.npy", np.array([[1, 0], [0, 0], [1, 1]], dtype=kind))
    assert read(root).labels.tolist() == [[1, 0], [1, 1]]


def test_byte_texts_and_non_ascii_names_are_read(root, save_jpeg):
    save_jpeg(root / "Flickr" / "é" / "鳥.jpg", 1)
    names = np.array([n.encode() for n in ("é/鳥.jpg", "y/1.jpg", "x/3.jpg")])
    np.save(root / "formatted_train_images.npy", names)
    assert read(root).ids == ("é/鳥.jpg", "x/3.jpg")


def test_archives_and_numbers_without_a_shape_are_named(root):
    file = root / "formatted_train_labels.npy"
    with open(file, "wb") as stream:
        np.savez(stream, labels=np.zeros((3, 2)))
    with pytest.raises(UserError, match=r"train_labels.npy: not a plain NumPy array: an archive"):
        read(root)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"train_labels.npy: not a plain NumPy array"):
        read(root)
    np.save(file, np.float64(1))
    with pytest.raises(UserError, match=r"train_labels.npy: float64 \(\); numbers of shape \(3, 2"):
        read(root)
    np.save(root / "formatted_train_images.npy", np.array("z/2.jpg"))
    with pytest.raises(UserError, match=r"train_images.npy: <U7 \(\); texts of shape"):
        read(root)
