"""Labelled subsets that users bring."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data.dataset import ImageSet
from benchmarks.data.splits.lists import place, read
from methods.errors import UserError


def images_of(ids: list[str], names: list[str] | None = None) -> ImageSet:
    paths = tuple(Path("pictures") / n for n in names or [f"{i}.jpg" for i in ids])
    return ImageSet(tuple(ids), paths, np.ones((len(ids), 1), np.uint8))


VOC = images_of([f"2008_{k:06d}" for k in range(40)])
COCO = images_of([str(7 * k + 9) for k in range(40)])


def put(folder: Path, name: str, content) -> Path:
    file = folder / name
    if name.endswith(".npy"):
        np.save(file, content)
    elif name.endswith(".json"):
        file.write_text(json.dumps(content))
    else:
        file.write_bytes(content)
    return file


POSITIONS = [3, 0, 39, 12]


@pytest.mark.parametrize(
    ("name", "content", "images"),
    [
        ("a.txt", b"3\n0\n39\n12\n", VOC),
        ("a.txt", b"\xef\xbb\xbf3\r\n0\r\n\r\n 39 \r\n12", VOC),
        ("a.txt", b"2008_000003\n2008_000000\n2008_000039\n2008_000012\n", VOC),
        ("a.txt", b"2008_000003.jpg\nx/2008_000000.jpg\n2008_000039.jpg\n2008_000012.jpg", VOC),
        ("a.txt", b"30\n9\n282\n93\n", COCO),
        ("a.txt", b"3\n0\n39\n12\n", COCO),
        ("a.json", POSITIONS, COCO),
        ("a.json", ["30", "9", "282", "93"], COCO),
        ("a.json", {"format": 1, "ids": ["30", "9", "282", "93"]}, COCO),
        ("a.npy", np.array(POSITIONS, np.int32), COCO),
        ("a.npy", np.array(POSITIONS, np.uint64), VOC),
        ("a.npy", np.array(["30", "9", "282", "93"]), COCO),
        ("A.NPY.npy", np.array(["v/2008_000003.jpg", "2008_000000", "2008_000039", "2008_000012"]), VOC),
    ],
)
def test_positions_ids_and_file_names_are_understood(tmp_path, name, content, images):
    file = put(tmp_path, name, content)
    found, notes = read(str(file), images, 0.1, 1, 4)
    assert found.tolist() == POSITIONS  # in the file's order
    assert found.dtype == np.int64
    assert notes == ()


def test_ratio_and_seed_are_filled_in(tmp_path):
    for ratio, seed, entries in ((0.1, 1, [0, 1, 2, 3]), (0.05, 12, [7, 5])):
        put(tmp_path, f"p{ratio}-seed{seed}.json", entries)
    pattern = str(tmp_path / "p{ratio}-seed{seed}.json")
    assert read(pattern, VOC, 0.1, 1, 4)[0].tolist() == [0, 1, 2, 3]
    assert read(pattern, VOC, 0.05, 12, 2)[0].tolist() == [7, 5]
    assert place("~/x{seed}.txt", 0.1, 3) == Path.home() / "x3.txt"
    with pytest.raises(UserError, match=r"p0\.15-seed1\.json is not there; did you mean 'p0\.1-se"):
        read(pattern, VOC, 0.15, 1, 6)
    with pytest.raises(UserError, match="is not there"):
        read(str(tmp_path / "absent" / "{seed}.txt"), VOC, 0.1, 1, 4)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"0\n1\n40\n2\n", r"entry 3: position 40 is not among the 40 .*0 … 39"),
        ("a.json", [0, -1, 2, 3], r"entry 2: position -1 is not among"),
        ("a.txt", b"0\n1\n1\n2\n", r"image '2008_000001' \(position 1\) is listed 2 times"),
        (
            "a.txt",
            b"2008_000001\n1008_000002\n2008_000003\n2008_000004",
            r"entry 2: no training image '1008_000002'; did you mean '2008_000002'\?$",
        ),
        ("a.txt", b"0\n1\nzzz\n2\n", r"entry 1: no training image '0'; list ids, file names or"),
        ("a.txt", b"\xff\xfe\x00", r"cannot be read: .*utf-8"),
        ("a.txt", b"", r"0 images, where ratio 0\.1 of 40 is 4; it is empty"),
        ("a.json", [0, "1"], r"neither a list of positions, nor"),
        ("a.json", [0.0, 1.0], r"neither a list of positions, nor"),
        ("a.json", [True, False], r"neither a list of positions, nor"),
        ("a.json", {"labelled": [1]}, r"neither a list of positions, nor"),
        ("a.npy", np.arange(4.0), r"float64 \(4,\); it must be one-dimensional and hold"),
        ("a.npy", np.zeros((2, 2), int), r"int64 \(2, 2\); it must be one-dimensional"),
        ("a.npy", np.array([{}, 1], object), r"not an array of numbers or text"),
    ],
)
def test_a_wrong_list_is_one_clear_line(tmp_path, name, content, message):
    file = put(tmp_path, name, content)
    with pytest.raises(UserError, match=message) as caught:
        read(str(file), VOC, 0.1, 1, 4)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(file))


def test_files_that_are_not_what_their_name_says(tmp_path):
    (tmp_path / "a.json").write_text("[1, 2")
    with pytest.raises(UserError, match="not valid JSON"):
        read(str(tmp_path / "a.json"), VOC, 0.1, 1, 4)
    (tmp_path / "a.npy").write_bytes(b"")
    with pytest.raises(UserError, match="not an array"):
        read(str(tmp_path / "a.npy"), VOC, 0.1, 1, 4)
    with open(tmp_path / "b.npy", "wb") as file:
        np.savez(file, a=np.arange(3))
    with pytest.raises(UserError, match="an archive; it must be"):
        read(str(tmp_path / "b.npy"), VOC, 0.1, 1, 4)


def test_one_wrong_id_among_numbers_is_no_position(tmp_path):
    file = put(tmp_path, "a.txt", b"30\n9\n10\n93\n")
    with pytest.raises(UserError, match=r"entry 3: no training image '10'; did you mean"):
        read(str(file), COCO, 0.1, 1, 4)


def test_numbers_that_could_be_either_are_refused(tmp_path):
    file = put(tmp_path, "a.txt", b"9\n16\n23\n30\n")  # the ids of 0, 1, 2, 3, and positions
    with pytest.raises(UserError, match=r"its numbers are image ids and could be positions"):
        read(str(file), COCO, 0.1, 1, 4)
    same = images_of([str(k) for k in range(40)])
    assert read(str(file), same, 0.1, 1, 4)[0].tolist() == [9, 16, 23, 30]
    assert read(str(put(tmp_path, "a.json", [9, 16, 23, 30])), COCO, 0.1, 1, 4)[0][0] == 9
    assert read(str(put(tmp_path, "b.json", ["9", "16", "23", "30"])), COCO, 0.1, 1, 4)[0][0] == 0


def test_a_file_name_that_two_images_have_is_refused(tmp_path):
    images = images_of(["a/1.jpg", "b/1.jpg", "c/2.jpg"], ["a/1.jpg", "b/1.jpg", "c/2.jpg"])
    file = put(tmp_path, "l.txt", b"2.jpg\nb/1.jpg\n")
    assert read(str(file), images, 0.67, 1, 2)[0].tolist() == [2, 1]
    file = put(tmp_path, "l.txt", b"2.jpg\n1.jpg\n")
    with pytest.raises(UserError, match=r"2 training images are named '1.jpg'; .* such as 'a/1"):
        read(str(file), images, 0.67, 1, 2)


def test_a_rounding_of_the_ratio_is_noted_and_another_ratio_is_refused(tmp_path):
    images = images_of([f"i{k}" for k in range(2000)])
    file = str(put(tmp_path, "a.json", list(range(202))))
    found, (note,) = read(file, images, 0.1, 1, 200)
    assert len(found) == 202
    assert "202 images, where ratio 0.1 of 2,000 is 200; accepted" in note
    assert read(file, images, 0.101, 1, 202)[1] == ()
    with pytest.raises(UserError, match=r"ratio 0\.05 of 2,000 is 100; use ratio 0\.101 or"):
        read(file, images, 0.05, 1, 100)
