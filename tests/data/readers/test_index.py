from __future__ import annotations

import dataclasses
import json
import os
import time

import numpy as np
import pytest

from benchmarks.data.readers import coco, index
from benchmarks.data.readers.class_names import COCO
from benchmarks.data.readers.index import Parsed, parsed
from benchmarks.data.registry import DatasetSpec, open_dataset

CONTENT = Parsed(
    ("cat", "dog", "犬"),
    ("9", "a\tb", "é"),
    ("x/1.jpg", "2 .jpg", "犬.jpg"),
    np.array([[1, 0, 0], [0, 0, 0], [1, 0, 1]], dtype=np.uint8),
)


def same(one, two):
    return (
        (one.classes, one.ids, one.names) == (two.classes, two.ids, two.names)
        and one.labels.dtype == two.labels.dtype
        and np.array_equal(one.labels, two.labels)
    )


def grown_old(file, seconds=60.0):
    """Set back the modification time, as of a file that was unpacked a while ago."""
    then = time.time() - seconds
    os.utime(file, (then, then))
    return file


@pytest.fixture
def file(tmp_path):
    (tmp_path / "source.json").write_text("{}")
    return grown_old(tmp_path / "source.json")


@pytest.fixture
def read(file, tmp_path):
    """Reads through the index; `calls` holds the files that were parsed."""

    def call(reader="r-1", content=CONTENT, source=file, folder=tmp_path / "cache" / "index"):
        def parse(path):
            call.calls.append(path)
            return content

        return parsed(source, reader, folder, parse)

    call.calls = []
    call.folder = tmp_path / "cache" / "index"
    return call


def test_a_file_is_parsed_once(read, file):
    for _ in range(3):
        assert same(read(), CONTENT)
    assert read.calls == [file]
    assert len(list(read.folder.iterdir())) == 1


@pytest.mark.parametrize("count", [1, 7, 8, 9, 80, 81])
def test_every_number_of_classes_and_images_comes_back(read, count):
    labels = np.random.default_rng(count).integers(0, 2, (5, count), dtype=np.uint8)
    names = tuple(map(str, range(5)))
    content = Parsed(tuple(f"c{k}" for k in range(count)), names, names, labels)
    read(content=content)
    assert same(read(), content)
    assert len(read.calls) == 1


def test_no_images_come_back_too(read):
    content = Parsed(("a", "b"), (), (), np.zeros((0, 2), dtype=np.uint8))
    read(content=content)
    assert same(read(), content)
    assert len(read.calls) == 1


def test_a_changed_file_is_parsed_again_and_replaces_its_index(read, file):
    read()
    grown_old(file, 50)  # another time of change
    other = dataclasses.replace(CONTENT, classes=("cat", "dog", "cow"))
    assert same(read(content=other), other)
    state = file.stat()
    file.write_text("{ }")  # another size at the same time of change
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert same(read(), CONTENT)
    assert same(read(content=other), CONTENT)
    assert len(read.calls) == 3
    assert len(list(read.folder.iterdir())) == 1


def test_another_file_or_reader_has_its_own_index(read, file, tmp_path):
    read()
    other = dataclasses.replace(CONTENT, ids=("7", "8", "9"))
    assert same(read(reader="r-2", content=other), other)
    twin = tmp_path / "twin.json"
    twin.write_text("{}")
    state = file.stat()
    os.utime(twin, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert same(read(content=other, source=twin), other)
    assert same(read(content=other), CONTENT)
    assert len(read.calls) == 3
    assert len(list(read.folder.iterdir())) == 3


def test_the_same_file_by_another_path_is_found(read, file, tmp_path, monkeypatch):
    read()
    monkeypatch.chdir(tmp_path)
    assert same(read(source=file.relative_to(tmp_path)), CONTENT)
    assert len(read.calls) == 1


def test_a_file_that_is_being_written_is_not_indexed(read, file):
    os.utime(file)  # now: another write of the same length might not show
    read()
    read()
    assert len(read.calls) == 2
    assert not any(read.folder.iterdir())


def test_a_file_that_changes_while_it_is_parsed_is_not_indexed(file, tmp_path):
    def parse(path):
        grown_old(path, 30)
        return CONTENT

    parsed(file, "r", tmp_path / "index", parse)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("damage", [b"", b"PK", b"\x93NUMPY", b"not an archive" * 100])
def test_what_is_no_index_is_written_anew(read, damage):
    read()
    (stored,) = read.folder.iterdir()
    whole = stored.read_bytes()
    stored.write_bytes(damage)
    assert same(read(), CONTENT)
    assert stored.read_bytes() == whole
    assert len(read.calls) == 2


def test_no_damage_changes_what_is_read(read):
    """Flipped bytes and truncated files: the content is right, parsed again or not."""
    read()
    (stored,) = read.folder.iterdir()
    whole = stored.read_bytes()
    before = len(read.calls)
    for k in range(0, len(whole), 11):
        stored.write_bytes(whole[:k] + bytes([whole[k] ^ 0x41]) + whole[k + 1 :])
        assert same(read(), CONTENT)
        stored.write_bytes(whole[:k])
        assert same(read(), CONTENT)
    # most flips and every cut were noticed; the rest are in times and the like
    assert len(read.calls) - before > len(whole) / 11


def test_an_index_of_the_right_file_with_wrong_shapes_is_parsed_again(read, file):
    read()
    (stored,) = read.folder.iterdir()
    state = index.state_of(file, "r-1")
    for wrong in (
        dataclasses.replace(CONTENT, ids=("1", "2")),
        dataclasses.replace(CONTENT, labels=CONTENT.labels[:2]),
        dataclasses.replace(CONTENT, classes=tuple("abcdefghij")),
    ):
        stored.write_bytes(index.pack(wrong, state))
        assert same(read(), CONTENT)


def test_pickles_are_not_opened(read, file):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was opened",))

    read()
    (stored,) = read.folder.iterdir()
    with np.load(stored) as arrays:
        values = dict(arrays)
    values["classes"] = np.array([Trap()], dtype=object)
    with open(stored, "wb") as stream:
        np.savez(stream, **values)
    assert same(read(), CONTENT)
    assert len(read.calls) == 2


def test_without_a_folder_that_can_be_written_it_works_too(read, tmp_path):
    (tmp_path / "full").touch()  # a file where the folder would be; root may write everywhere else
    for folder in (tmp_path / "full", tmp_path / "full" / "index", None):
        assert same(read(folder=folder), CONTENT)
    assert len(read.calls) == 3


# -- with COCO's reader ------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path, build_coco, instances):
    categories = {k + 1: name for k, name in enumerate(COCO)}
    for split, images in (("train2014", {9: [1, 80], 100: [], 30: [2]}), ("val2014", {7: [3]})):
        file, _ = build_coco(tmp_path / "coco2014", split, instances(images, categories))
        grown_old(file)
    return tmp_path


def test_the_dataset_is_the_same_with_and_without_its_index(root, monkeypatch):
    specs = [
        DatasetSpec("coco2014", allow_counts=True, empty=empty, order=order)
        for empty in ("drop", "keep")
        for order in ("published", "file")
    ]
    before = [open_dataset(spec, root) for spec in specs]
    assert len(list((root / "cache" / "index").iterdir())) == 2
    monkeypatch.setattr(coco, "_load", lambda file: pytest.fail(f"{file} was parsed"))
    after = [open_dataset(spec, root) for spec in specs]  # one index serves all options
    for one, two in zip(before, after, strict=True):
        assert one.digest == two.digest
        assert one.train.paths == two.train.paths
        assert one.test.labels.tolist() == two.test.labels.tolist()
    assert len({dataset.digest for dataset in after}) == 4
    # counts refer to the copy, before images are dropped
    assert all("2 training and 1 test images" in dataset.notes[0] for dataset in after)


def test_images_are_looked_for_each_time(root):
    from methods.errors import UserError

    spec = DatasetSpec("coco2014", allow_counts=True)
    open_dataset(spec, root)
    (root / "coco2014" / "train2014" / "000009.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 2 images are not on disk, such as .*000009.jpg"):
        open_dataset(spec, root)


def test_an_edited_file_gives_the_edited_dataset(root):
    spec = DatasetSpec("coco2014", allow_counts=True)
    before = open_dataset(spec, root)
    file = root / "coco2014" / "annotations" / "instances_val2014.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 4  # as many bytes
    file.write_text(json.dumps(content))
    after = open_dataset(spec, root)
    assert after.digest != before.digest
    assert after.test.labels[0].nonzero()[0].tolist() == [3]


def test_a_wrong_file_leaves_no_index(root):
    from methods.errors import UserError

    file = root / "coco2014" / "annotations" / "instances_train2014.json"
    file.write_text("{")
    grown_old(file)
    with pytest.raises(UserError, match="not valid JSON"):
        open_dataset(DatasetSpec("coco2014"), root)
    assert not (root / "cache" / "index").exists()
