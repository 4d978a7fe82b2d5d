"""Reader of the official PASCAL VOC tree.

`ImageSets/Main/<class>_<split>.txt` holds one image per line with 1 (present), -1 (absent) or
0 (only difficult objects). `Annotations/<image>.xml` says the same object by object. The published
protocol reads the lists, ignores difficult objects, drops images without a positive and sorts the
others by name; classes are in alphabetical order. No XML file is opened where labels come from lists.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.dataset import ImageSet
from benchmarks.data.readers import npy
from benchmarks.data.readers.base import Contents, Counts, Request
from benchmarks.data.readers.class_names import VOC
from benchmarks.data.readers.files import check_files, read_lines, unreadable
from methods.errors import UserError, nearest

OBJECT = ("annotation", "object")
"""Where an object is in the XML; deeper ones, such as the parts of a person, are not labels."""


def reader(year: str, train: str, test: str, classic: Counts) -> Callable[[Request], Contents | None]:
    """The reader of one year.

    It returns None where neither the tree nor the four arrays are there, and raises `UserError` as
    `read_split` and `npy.read_arrays` do, or when the options need the tree and only the arrays are there.

    Args:
        year: "2007" or "2012".
        train: name of the training split.
        test: name of the test split.
        classic: numbers of images that the two splits list.
    """

    def read(request: Request) -> Contents | None:
        root = request.root
        needs_tree = [
            f"{field} = {value!r}"
            for field, value, usual in (
                ("labels", request.labels, "lists"),
                ("difficult", request.difficult, "ignore"),
            )
            if value != usual
        ]
        if npy.present(root) and not needs_tree:
            folders = [f"VOCdevkit/VOC{year}/JPEGImages", "."]
            return npy.read_arrays(request, VOC, folders, classic, lambda path: path.stem, count_all=True)
        tree = find_tree(root, year)
        if tree is None and npy.present(root):
            raise UserError(
                f"{root}: {needs_tree[0]} needs the official tree (VOCdevkit/VOC{year}), "
                "and there are only the arrays formatted_*.npy"
            )
        if tree is None:
            return None
        (train_images, listed), (test_images, test_listed) = (
            read_split(
                tree,
                split,
                labels=request.labels,
                difficult=request.difficult,
                empty=request.empty,
                order=request.order,
            )
            for split in (train, test)
        )
        return Contents(VOC, train_images, test_images, (listed, test_listed), classic)

    return read


def find_tree(root: Path, year: str) -> Path | None:
    """The folder that holds `ImageSets` and `JPEGImages`, at or below a root; None if absent."""
    for folder in (root / "VOCdevkit" / f"VOC{year}", root / f"VOC{year}", root):
        if (folder / "ImageSets" / "Main").is_dir():
            return folder
    return None


def read_split(
    tree: Path,
    split: str,
    *,
    labels: str = "lists",
    difficult: str = "ignore",
    empty: str = "drop",
    order: str = "published",
) -> tuple[ImageSet, int]:
    """Read one split.

    Args:
        tree: folder that holds `ImageSets` and `JPEGImages`.
        split: "train", "val", "trainval" or "test".
        labels: "lists" reads the lists of the classes; "xml" reads `<split>.txt` for the images
            and their XML for the classes.
        difficult: "ignore" or "positive": a class that has only difficult objects is absent or present.
        empty: "drop" or "keep" images with none of the 20 classes.
        order: "published" sorts by name, "file" keeps the order of the list.

    Returns:
        The images, and how many of them the split lists.

    Raises:
        UserError: a list, an XML file or an image is missing or wrong; one line with file and
            line.
    """
    names, values = (_from_xml if labels == "xml" else _from_lists)(tree, split)
    present = (values >= 0 if difficult == "positive" else values == 1).astype(np.uint8)
    paths = tuple(tree / "JPEGImages" / f"{name}.jpg" for name in names)
    images = ImageSet(tuple(names), paths, present)
    if order == "published":
        images = images.take(sorted(range(len(names)), key=names.__getitem__))
    if empty == "drop":
        images = images.with_label()
    paths = check_files(images.paths, f"{tree} ({split})")
    return ImageSet(images.ids, paths, images.labels), len(names)


def _from_lists(tree: Path, split: str) -> tuple[list[str], NDArray[np.int8]]:
    """Names of the images and (N, 20) values 1, 0 and -1 of the lists."""
    columns: list[dict[str, int]] = []
    for name in VOC:
        file = tree / "ImageSets" / "Main" / f"{name}_{split}.txt"
        values = _read_list(file)
        if columns and values.keys() != columns[0].keys():
            other = tree / "ImageSets" / "Main" / f"{VOC[0]}_{split}.txt"
            odd = min(values.keys() ^ columns[0].keys())
            here, there = (file, other) if odd in values else (other, file)
            raise UserError(
                f"{here}: image {odd!r} is not in {there.name}; all lists of a split "
                "must name the same images"
            )
        columns.append(values)
    names = list(columns[0])
    found = np.array([[values[name] for values in columns] for name in names], dtype=np.int8)
    return names, found.reshape(len(names), len(VOC))


def _read_list(file: Path) -> dict[str, int]:
    values: dict[str, int] = {}
    for number, line in enumerate(read_lines(file, "; unpack the archive completely"), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or fields[1] not in ("1", "0", "-1"):
            raise UserError(f"{file}:{number}: {line.strip()!r} is not an image and 1, 0 or -1")
        _check_image(file, number, fields[0], values)
        values[fields[0]] = int(fields[1])
    return values


def _check_image(file: Path, number: int, name: str, earlier: dict[str, int]) -> None:
    if "/" in name or "\\" in name:
        raise UserError(f"{file}:{number}: {name!r} is not the name of an image")
    if name in earlier:
        raise UserError(f"{file}:{number}: image {name!r} is listed twice")


# -- XML ---------------------------------------------------------------------------------------


def _from_xml(tree: Path, split: str) -> tuple[list[str], NDArray[np.int8]]:
    """The same as `_from_lists`, from the list of images and one XML file for each."""
    file = tree / "ImageSets" / "Main" / f"{split}.txt"
    lines: dict[str, int] = {}
    for number, line in enumerate(read_lines(file, "; unpack the archive completely"), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 1:
            raise UserError(f"{file}:{number}: {line.strip()!r} is not the name of an image")
        _check_image(file, number, fields[0], lines)
        lines[fields[0]] = number
    columns = {name: k for k, name in enumerate(VOC)}
    found = np.full((len(lines), len(VOC)), -1, dtype=np.int8)
    for k, image in enumerate(lines):
        for name, difficult in read_objects(tree / "Annotations" / f"{image}.xml"):
            column = columns[name]
            found[k, column] = max(found[k, column], 0 if difficult else 1)
    return list(lines), found


def read_objects(file: Path) -> list[tuple[str, bool]]:
    """The objects of an image's XML: class and whether it is marked difficult.

    Raises:
        UserError: the file is missing or not XML, or an object has no class, an unknown one, or a
            mark that is not 0 or 1; the message holds file and line.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        hint = "; unpack the archive completely, or read the lists (labels = 'lists')"
        raise unreadable(file, error, hint) from None
    found = _Objects(file)
    try:
        found.parser.Parse(content, True)
    except expat.ExpatError as error:
        raise UserError(f"{file}:{error.lineno}: not valid XML: {expat.ErrorString(error.code)}") from None
    except (LookupError, ValueError) as error:  # an encoding that Python or expat does not have
        raise UserError(f"{file}: not valid XML: {error}") from None
    return found.objects


class _Objects:
    """Collects objects during parsing: the parser knows the line, a finished tree does not."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.objects: list[tuple[str, bool]] = []
        self.path: list[str] = []
        self.text = ""
        self.values: dict[str, str] = {}
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self.start
        self.parser.EndElementHandler = self.end
        self.parser.CharacterDataHandler = self.characters

    def start(self, tag: str, _attributes: dict[str, str]) -> None:
        self.path.append(tag)
        self.text = ""
        if len(self.path) == 1 and tag != OBJECT[0]:
            raise self.error(f"<{tag}> where <{OBJECT[0]}> is expected")
        if tuple(self.path) == OBJECT:
            self.values = {}

    def characters(self, text: str) -> None:
        self.text += text

    def end(self, tag: str) -> None:
        if tuple(self.path) == (*OBJECT, "name"):
            self.values["name"] = name = self.text.strip()
            if name not in VOC:
                raise self.error(f"object of class {name!r}{nearest(name, VOC)}")
        elif tuple(self.path) == (*OBJECT, "difficult"):
            self.values["difficult"] = mark = self.text.strip()
            if mark not in ("0", "1"):
                raise self.error(f"difficult is {mark!r}; it must be 0 or 1")
        elif tuple(self.path) == OBJECT:
            if "name" not in self.values:
                raise self.error("an object without a name")
            # Early annotations leave the mark out: such objects are not difficult.
            self.objects.append((self.values["name"], self.values.get("difficult") == "1"))
        self.path.pop()

    def error(self, what: str) -> UserError:
        return UserError(f"{self.file}:{self.parser.CurrentLineNumber}: {what}")
