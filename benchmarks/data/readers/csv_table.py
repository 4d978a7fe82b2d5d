"""Reader of a user's own images listed in CSV files.

The header says which of two forms a file has:

* `path,labels` (or `label`): one image a line, its classes separated by `;`, none where the cell is
  empty. Classes are in alphabetical order.
* `path,<class>,<class>,…`: 1 where the class is present, 0 where not. Classes are in the order of
  the columns.

A column `split` says `train` or `test`; it is needed where one file holds both. A `classes.txt` beside
the training file, one class a line, gives the order instead; it must then list every class. Without one,
every class of a test image must be a class of some training image. Files are UTF-8 with or without a
byte-order mark, with commas and double quotes as Python's `csv` module reads them. The order of the lines
is kept; an image's name is its path.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from benchmarks.data.dataset import ImageSet
from benchmarks.data.readers.base import Contents, Request
from benchmarks.data.readers.files import (
    check_files,
    composed,
    holder,
    is_name,
    relative,
    unreadable,
)
from benchmarks.data.readers.rules import class_name, joined_classes, read_classes
from methods.errors import UserError, nearest

SPLITS = ("train", "test")
FORMS = "the header must be path,labels or path,<class>,<class>,… and may have a column split"


@dataclass(frozen=True)
class Row:
    """One image as a file lists it.

    Attributes:
        file: the CSV file.
        line: number of its line, from 1.
        split: "train" or "test".
        path: relative to the folder of images.
        classes: names of its classes.
    """

    file: Path
    line: int
    split: str
    path: PurePosixPath
    classes: tuple[str, ...]

    @property
    def where(self) -> str:
        """File and line, for messages."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class _Table:
    """The rows of a file, and the classes of its columns; None where it has no such columns."""

    file: Path
    columns: tuple[str, ...] | None
    rows: list[Row] = field(default_factory=list)


def read(request: Request) -> Contents | None:
    """A user's own CSV files; None where none is named and none has the usual name.

    Raises:
        UserError: as `find_files` and `read_files`.
    """
    files = find_files(request.root, request.train, request.test)
    if files is None:
        return None
    folders = [request.root / request.images] if request.images else []
    return Contents(*read_files(files, folders, empty=request.empty))


def find_files(root: Path, train: str, test: str) -> tuple[Path, Path | None] | None:
    """The CSV files: two, or one that holds both splits.

    Args:
        root: folder that the names are relative to.
        train: file of the training images, or of all images where `test` is empty. If empty, `train.csv`
            and `test.csv` are tried, then `labels.csv`.
        test: file of the test images.

    Returns:
        One file and None, or both; None if no file is there.

    Raises:
        UserError: `test` without `train`, or `train.csv` without `test.csv`.
    """
    if train:
        return root / train, (root / test if test else None)
    if test:
        raise UserError(f"test = {test!r} needs train: which file lists the training images?")
    both, single = (root / "train.csv", root / "test.csv"), root / "labels.csv"
    if all(file.is_file() for file in both):
        return both
    if single.is_file():
        return single, None
    for file, other in (both, both[::-1]):
        if file.is_file():
            raise UserError(
                f"{other}: no such file; it belongs to {file}. One file for both "
                "splits is called labels.csv and has a column split"
            )
    return None


def read_files(
    files: tuple[Path, Path | None],
    folders: Sequence[Path] = (),
    *,
    empty: str = "drop",
) -> tuple[tuple[str, ...], ImageSet, ImageSet]:
    """Read both splits.

    Args:
        files: the two files, or one with a column `split` and None.
        folders: folders that the paths may be relative to; the first that holds the first image is used.
            Without any it is the folder of the training file.
        empty: "drop" or "keep" images without a label.

    Returns:
        Class names, training images, test images.

    Raises:
        UserError: a file or image is missing or wrong; one line with file and line.
    """
    train, test = files
    if test is None:
        tables = [_read_table(train, None)]
    else:
        tables = [_read_table(train, "train"), _read_table(test, "test")]
    rows = [row for table in tables for row in table.rows]
    parts = {split: [row for row in rows if row.split == split] for split in SPLITS}
    for split, some in parts.items():
        if not some:
            raise UserError(f"{(split == 'test' and test) or train}: no {split} image is listed")
    _check_unique(rows)
    classes = _classes(train.parent / "classes.txt", tables, rows)
    sets = [_image_set(parts[split], classes, folders, empty) for split in SPLITS]
    return classes, sets[0], sets[1]


def _image_set(rows: Sequence[Row], classes: Sequence[str], folders: Sequence[Path], empty: str) -> ImageSet:
    columns = {name: k for k, name in enumerate(classes)}
    labels = np.zeros((len(rows), len(columns)), dtype=np.uint8)
    for k, row in enumerate(rows):
        for name in row.classes:
            labels[k, columns[name]] = 1
    folder = holder(folders or [rows[0].file.parent], rows[0].path)
    paths = tuple(folder / row.path for row in rows)
    images = ImageSet(tuple(composed(str(row.path)) for row in rows), paths, labels)
    if empty == "drop":
        images = images.with_label()
    return ImageSet(images.ids, check_files(images.paths, str(rows[0].file)), images.labels)


def _check_unique(rows: Sequence[Row]) -> None:
    seen: dict[tuple[Path, str], Row] = {}
    for row in rows:
        first = seen.setdefault((row.file.parent, composed(str(row.path))), row)
        if first is not row:
            there = f"line {first.line}" if first.file == row.file else first.where
            raise UserError(f"{row.where}: {str(row.path)!r} is also in {there}")


def _classes(order: Path, tables: Sequence[_Table], rows: Sequence[Row]) -> tuple[str, ...]:
    """The classes in the order of the label columns."""
    if order.is_file():
        classes, lacks = read_classes(order), f"is not in {order.name}"
    elif tables[0].columns is not None:
        classes, lacks = tables[0].columns, f"has no column in {tables[0].file.name}"
    else:
        named = {name for row in rows if row.split == "train" for name in row.classes}
        classes = tuple(sorted(named))
        first: dict[str, str] = {}
        for row in rows:
            for name in row.classes:
                first.setdefault(name, row.where)
        joined = joined_classes(first)
        if joined:
            raise UserError("\n".join(joined))
        lacks = f"is a class of no training image; if it is meant, list all classes in {order}"
    for table in tables:
        for name in table.columns or ():
            if name not in classes:
                raise UserError(f"{table.file}:1: class {name!r} {lacks}{nearest(name, classes)}")
        for name in classes if table.columns is not None else ():
            if name not in (table.columns or ()):
                raise UserError(f"{table.file}:1: class {name!r} has no column")
    known = set(classes)
    for row in rows:
        for name in row.classes:
            if name not in known:
                raise UserError(f"{row.where}: class {name!r} {lacks}{nearest(name, classes)}")
    return classes


# -- one file ----------------------------------------------------------------------------------


def _read_table(file: Path, split: str | None) -> _Table:
    """Read a file whose images all belong to `split`; with None its column `split` says where to."""
    lines = _records(file)
    line, header = next(lines, (1, None))
    if header is None:
        raise UserError(f"{file}: the file is empty; {FORMS}")
    where = f"{file}:{line}"
    names = [composed(name.strip()) for name in header]
    kinds = [name.casefold() for name in names]
    # "path", "split" and "labels" are read in any case; the names of classes keep theirs.
    special = {kind: k for k, kind in enumerate(kinds) if kind in ("path", "split")}
    lists = [k for k, kind in enumerate(kinds) if kind in ("label", "labels")]
    for k, name in enumerate(names):
        if not name or not is_name(name):
            raise UserError(f"{where}: column {k + 1} has no name; {FORMS}")
        class_name(f"{where}: column", name)
        earlier = kinds if kinds[k] in ("path", "split") else names
        if earlier.index(earlier[k]) != k:
            raise UserError(f"{where}: column {name!r} is there twice")
    classes = [k for k in range(len(names)) if k not in special.values() and k not in lists]
    if "path" not in special or len(lists) + bool(classes) != 1:
        raise UserError(f"{where}: {','.join(names)!r}: {FORMS}")
    if split is None and "split" not in special:
        raise UserError(
            f"{where}: there is no column split, which says train or test; name two "
            "files (train and test) where each holds one split"
        )
    table = _Table(file, None if lists else tuple(names[k] for k in classes))
    for line, cells in lines:
        where = f"{file}:{line}"
        if len(cells) != len(names):
            raise UserError(
                f"{where}: {len(cells)} fields where the header has {len(names)}; a "
                "text that holds a comma is written in double quotes"
            )
        path = relative(where, cells[special["path"]].strip())
        part = _split(where, cells[special["split"]], split) if "split" in special else split
        assert part is not None  # without the column, the caller says which
        found = (
            _listed(where, cells[lists[0]])
            if lists
            else tuple(names[k] for k in classes if _present(where, names[k], cells[k]))
        )
        table.rows.append(Row(file, line, part, path, found))
    return table


def _records(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV file that are not blank, each with the line it starts in."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise unreadable(file, error) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}:{line}: not UTF-8 text; save the file as UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{file}:{line}: not valid CSV: {error}; is a double quote not closed, or not doubled?"
        ) from None


def _split(where: str, cell: str, expected: str | None) -> str:
    value = cell.strip().casefold()
    if value in ("val", "valid", "validation", "dev"):
        # Only the user can decide to use them as test images, as the published arrays do.
        raise UserError(
            f"{where}: split is {cell.strip()!r}; it must be train or test. Validation "
            "images are drawn from the labelled ones (val_share in a recipe): call "
            "these train or test, or leave them out"
        )
    if value not in SPLITS:
        raise UserError(f"{where}: split is {cell.strip()!r}; it must be train or test")
    if expected is not None and value != expected:
        raise UserError(f"{where}: split is {value!r} in the file of the {expected} images")
    return value


def _listed(where: str, cell: str) -> tuple[str, ...]:
    start = f"{where}: class"
    names = [name for name in cell.split(";") if name.strip()]
    if len(names) > 1 and cell.strip()[0] in "[({":
        class_name(start, cell)  # a list that is cut in two is better named as a whole
    return tuple(class_name(start, name) for name in names)


def _present(where: str, name: str, cell: str) -> bool:
    value = cell.strip()
    if value not in ("0", "1"):
        raise UserError(f"{where}: column {name!r} is {value!r}; it must be 0 or 1")
    return value == "1"
