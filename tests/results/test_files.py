from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from results.files import (
    atomic_write_bytes,
    atomic_write_json,
    atomic_writer,
    canonical_json,
    remove_temporaries,
)


def test_equal_values_give_equal_text() -> None:
    one = {"b": [1, 2.5, None], "a": {"y": True, "x": "é"}}
    two = {"a": {"x": "é", "y": True}, "b": (1, np.float64(2.5), None)}
    assert canonical_json(one) == canonical_json(two) == '{"a":{"x":"é","y":true},"b":[1,2.5,null]}\n'
    assert json.loads(canonical_json(one, indent=1)) == one


def test_numpy_values_are_stored_as_numbers() -> None:
    value = {"count": np.int64(3), "mean": np.float32(0.5), "list": np.arange(3)}
    assert canonical_json(value) == '{"count":3,"list":[0,1,2],"mean":0.5}\n'


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"losses": {"asl": [1.0, float("nan")]}}, r"losses\.asl\[1\]"),
        ({"lr": np.float32("inf")}, "lr"),
        ({"ap": np.array([1.0, np.nan])}, r"ap\[1\]"),
        (float("-inf"), "the value"),
    ],
)
def test_nan_is_refused_with_its_place(value: object, place: str) -> None:
    with pytest.raises(ValueError, match=rf"^{place} is NaN or infinite"):
        canonical_json(value)


def test_unknown_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="cannot store a PosixPath"):
        canonical_json({"path": Path("/tmp")})


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    atomic_write_json(path, {"old": 1})

    def break_off() -> None:
        with atomic_writer(path) as file:
            file.write(b"half of the new conte")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        break_off()
    with pytest.raises(ValueError, match="NaN"):
        atomic_write_json(path, {"new": float("nan")})
    assert json.loads(path.read_text()) == {"old": 1}
    assert os.listdir(tmp_path) == ["file.json"]


def test_a_reader_with_the_old_file_open_is_not_disturbed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write_bytes(path, b"old")
    with open(path, "rb") as reader:
        atomic_write_bytes(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write_bytes(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_remove_temporaries_leaves_other_files(tmp_path: Path) -> None:
    for name in (".result.json.host-1-ab.tmp", "notes.tmp", ".hidden", "result.json"):
        (tmp_path / name).write_text("x")
    remove_temporaries(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", "notes.tmp", "result.json"]


def test_a_name_that_is_no_unicode_survives_a_file(tmp_path: Path) -> None:
    value = {"classes": ["caf\udce9", "café", "\\udce9"]}
    atomic_write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_bytes()) == value
    assert "café" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_a_full_disk_is_said_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, atomic_writer(tmp_path / "a"):  # noqa: PT011
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
