from __future__ import annotations

import unicodedata
from pathlib import Path, PurePosixPath

import pytest

from benchmarks.data.readers.files import check_files, check_unique, holder, read_lines, relative
from benchmarks.data.readers.rules import read_classes
from methods.errors import UserError


@pytest.mark.parametrize("name", ["a.jpg", "x/a.jpg", "x\\a.jpg", "./x//a.jpg", "é/..a.jpg", "7"])
def test_a_path_below_its_folder_is_taken(name):
    path = relative("here", name)
    assert path == PurePosixPath(name.replace("\\", "/"))
    assert (Path("/data") / path).is_relative_to("/data")


@pytest.mark.parametrize(
    "name",
    ["", ".", "/", "/etc/passwd", "..", "../a", "x/../../a", "x\\..\\a", "a\0b", "a\nb", "\udc80.jpg"],
)
def test_a_path_that_is_none_is_refused(name):
    with pytest.raises(UserError, match=r"^here: .* is not a path below the folder of images$"):
        relative("here", name)


def test_the_folder_of_the_images_is_found(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.jpg").touch()
    folders = [tmp_path / name for name in "abc"]
    assert holder(folders, "1.jpg") == tmp_path / "b"
    assert holder(folders, "2.jpg") == tmp_path / "a"
    assert holder(folders, None) == tmp_path / "a"


def test_names_that_come_twice():
    check_unique(["a", "b"], lambda k, first: pytest.fail("no name comes twice"))
    with pytest.raises(UserError, match="3 is 1"):
        check_unique(["a", "b", "c", "b", "a"], lambda k, first: f"{k} is {first}")


def test_classes_one_a_line(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_bytes("\ufeffcat\r\n\r\n dining table \r\ne\u0301clair".encode())
    assert read_classes(file) == ("cat", "dining table", "éclair")
    file.write_text("cat\ndog\u2028x\n", encoding="utf-8")  # a line for us; no name in one line
    assert read_lines(file) == ["cat", "dog\u2028x"]
    with pytest.raises(UserError, match=r"classes.txt:2: class 'dog\\u2028x' is not a name in one line"):
        read_classes(file)
    file.write_text("cat\ndog\n\ncat\n")
    with pytest.raises(UserError, match=r"classes.txt:4: class 'cat' is also in line 1"):
        read_classes(file)
    file.write_text("\n")
    with pytest.raises(UserError, match=r"classes.txt: no class is listed"):
        read_classes(file)
    file.write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"classes.txt: not UTF-8 text at byte 3"):
        read_classes(file)
    file.unlink()
    with pytest.raises(UserError, match=r"classes.txt: no such file; it holds the names"):
        read_classes(file)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("listed", ["NFC", "NFD"])
def test_names_are_found_in_either_form_of_unicode(tmp_path, form, listed):
    text = "Bäume/Übergröße é.jpg"
    there = tmp_path / unicodedata.normalize(form, text)
    there.parent.mkdir()
    there.touch()
    (there.parent / "a.jpg").touch()
    wanted = tmp_path / unicodedata.normalize(listed, text)
    assert check_files([wanted, there.parent / "a.jpg"], "here") == (there, there.parent / "a.jpg")


def test_missing_files_are_counted_and_the_first_is_named(tmp_path):
    (tmp_path / "1.jpg").touch()
    (tmp_path / "file").touch()
    names = ["1.jpg", "nö.jpg", "file/2.jpg", "gone/3.jpg"]
    with pytest.raises(UserError, match=r"^here: 3 of 4 images .* such as .*/nö.jpg; unpack"):
        check_files([tmp_path / name for name in names], "here")


def test_files_of_the_present_folder_are_found(tmp_path, monkeypatch):
    (tmp_path / "1.jpg").touch()
    monkeypatch.chdir(tmp_path)
    assert check_files([Path("1.jpg"), Path("./1.jpg")], "here") == (Path("1.jpg"),) * 2
