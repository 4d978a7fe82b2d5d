"""Reader of a user's own images listed in CSV files.

The header says which of two forms a file has:

* `path,labels` (or `label`): one image a line, its classes separated by `;`, none where the cell is
  empty. Classes are in alphabetical order.
* `path,<class>,<class>,…`: 1 where the class is present, 0 where not. Classes are in the order of
  the columns.

A column `split` says `train` or `test`; it is needed where one file holds both, unless lists of images or a
share drawn at random (`Division`) say it. A `classes.txt` beside the training file, one class a line, gives
the order instead; it must then list every class. Without one, every class of a test image must be a class of
some training image. Files are UTF-8 with or without a byte-order mark, with commas and double quotes as
Python's `csv` module reads them. The order of the lines is kept; an image's name is its path. Tables of
another form are read with the options of `csv_file.Form`; all problems of the lines are said at once.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.data.dataset import ImageSet
from benchmarks.data.readers.base import Contents, Request
from benchmarks.data.readers.csv_file import SPLITS, Form, Row, Table, read_table
from benchmarks.data.readers.files import check_files, composed, holder, read_lines
from benchmarks.data.readers.rules import joined_classes, read_classes
from methods.errors import UserError, nearest
from results.text import listed

NAMED = 20
"""Problems that an error names, and duplicates that a note names."""


@dataclass(frozen=True)
class Division:
    """What says which images are for training and which for the test, where no column does.

    Attributes:
        test_share: share of the images that are drawn for the test; 0 draws none.
        seed: of the draw.
        train_list: file with the training images, one a line; None: those that are not in `test_list`.
        test_list: likewise.
    """

    test_share: float = 0.0
    seed: int = 1
    train_list: Path | None = None
    test_list: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.test_share or self.train_list or self.test_list)


def read(request: Request) -> Contents | None:
    """A user's own CSV files; None where none is named and none has the usual name.

    Raises:
        UserError: as `find_files` and `read_files`.
    """
    root = request.root
    files = find_files(root, request.train, request.test)
    if files is None:
        return None
    folders = [root / request.images] if request.images else []
    if "*" in request.images:
        folders = sorted(folder for folder in root.glob(request.images) if folder.is_dir())
        if not folders:
            raise UserError(f"{root}: no folder is called {request.images!r} (images)")
    form = Form(**{field.name: getattr(request, field.name) for field in dataclasses.fields(Form)})
    lists = [root / name if name else None for name in (request.train_list, request.test_list)]
    division = Division(request.test_share, request.test_seed, *lists)
    notes: list[str] = []
    contents = read_files(
        files,
        folders,
        empty=request.empty,
        form=form,
        division=division,
        merge=request.duplicates == "merge",
        spread="*" in request.images,
        notes=notes,
    )
    return Contents(*contents, notes=tuple(notes))


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
    form: Form | None = None,
    division: Division | None = None,
    merge: bool = False,
    spread: bool = False,
    notes: list[str] | None = None,
) -> tuple[tuple[str, ...], ImageSet, ImageSet]:
    """Read both splits.

    Args:
        files: the two files, or one with both splits and None.
        folders: folders that the paths may be relative to; the first that holds the first image is used.
            Without any it is the folder of the training file.
        empty: "drop" or "keep" images without a label.
        form: how the files are written.
        division: what says which images are for the test, where no column does.
        merge: make one image of the lines that name the same one.
        spread: look for each image in all folders.
        notes: remarks for the user are added here.

    Returns:
        Class names, training images, test images.

    Raises:
        UserError: a file or image is missing or wrong; a line with file and line for each problem.
    """
    train, test = files
    form, division, notes = form or Form(), division or Division(), notes if notes is not None else []
    if division and test is not None:
        raise UserError(f"{test}: test_share and lists of images are for one file with all images")
    if division.test_share and (division.train_list or division.test_list):
        raise UserError(
            f"{train}: test_share draws the test images; it cannot be given beside a list of them"
        )
    problems: list[str] = []
    if test is None:
        tables = [read_table(train, "" if division else None, form, problems)]
    else:
        tables = [
            read_table(file, split, form, problems) for file, split in zip((train, test), SPLITS, strict=True)
        ]
    rows = _unique([row for table in tables for row in table.rows], merge, problems, notes)
    if division:
        rows = _divided(rows, division, form, problems, notes)
    _raise(problems)
    parts = {split: [row for row in rows if row.split == split] for split in SPLITS}
    for split, some in parts.items():
        if not some:
            raise UserError(f"{(split == 'test' and test) or train}: no {split} image is listed")
    classes = _classes(train.parent / "classes.txt", tables, rows, form)
    sets = [_image_set(parts[split], classes, folders, empty, spread) for split in SPLITS]
    return classes, sets[0], sets[1]


def _raise(problems: Sequence[str]) -> None:
    """Raise all problems as one error, a line for each."""
    if problems:
        more = [f"and {len(problems) - NAMED} more problems"] if len(problems) > NAMED else []
        raise UserError("\n".join([*problems[:NAMED], *more]))


def _image_set(
    rows: Sequence[Row], classes: Sequence[str], folders: Sequence[Path], empty: str, spread: bool
) -> ImageSet:
    columns = {name: k for k, name in enumerate(classes)}
    labels = np.zeros((len(rows), len(columns)), dtype=np.uint8)
    for k, row in enumerate(rows):
        for name in row.classes:
            labels[k, columns[name]] = 1
    if spread:
        paths = _spread(rows, folders)
    else:
        folder = holder(folders or [rows[0].file.parent], rows[0].path)
        paths = tuple(folder / row.path for row in rows)
    images = ImageSet(tuple(composed(str(row.path)) for row in rows), paths, labels)
    if empty == "drop":
        images = images.with_label()
    return ImageSet(images.ids, check_files(images.paths, str(rows[0].file)), images.labels)


def _spread(rows: Sequence[Row], folders: Sequence[Path]) -> tuple[Path, ...]:
    """The file of each image, which may be in any of the folders."""
    listed = [(folder, frozenset(map(composed, os.listdir(folder)))) for folder in folders]
    paths = []
    for row in rows:
        first = composed(row.path.parts[0])
        found = [folder / row.path for folder, names in listed if first in names]
        if len(found) > 1:
            found = [path for path in found if path.is_file()] or found
        if len(found) > 1:
            raise UserError(
                f"{row.where}: {str(row.path)!r} is in {found[0].parent} and in {found[1].parent}"
            )
        paths.append(found[0] if found else folders[0] / row.path)
    return tuple(paths)


def _unique(rows: Sequence[Row], merge: bool, problems: list[str], notes: list[str]) -> list[Row]:
    """The rows with every image once."""
    seen: dict[tuple[Path, str], Row] = {}
    merged: list[str] = []
    alike = False
    for row in rows:
        key = (row.file.parent, composed(str(row.path)))
        first = seen.setdefault(key, row)
        if first is row:
            continue
        there = f"line {first.line}" if first.file == row.file else first.where
        if not merge:
            problems.append(f"{row.where}: {str(row.path)!r} is also in {there}")
            alike = first.split == row.split
        elif first.split != row.split:
            problems.append(
                f"{row.where}: {str(row.path)!r} is a {row.split} image, and a {first.split} image in {there}"
            )
        else:
            classes = tuple(dict.fromkeys((*first.classes, *row.classes)))
            seen[key] = dataclasses.replace(first, classes=classes)
            merged.append(f"{row.path} (lines {first.line} and {row.line})")
    if alike:
        problems[-1] += "; to make one image of such lines, set duplicates = 'merge'"
    if merged:
        notes.append(f"{len(merged)} lines merged with an earlier one: {listed(merged, NAMED)}")
    return list(seen.values())


def _divided(
    rows: Sequence[Row], division: Division, form: Form, problems: list[str], notes: list[str]
) -> list[Row]:
    """The rows with their splits."""
    names = [composed(str(row.path)) for row in rows]
    if division.test_share:
        count = round(division.test_share * len(rows))
        # Drawn from the sorted names: the order of the lines does not matter.
        drawn = np.random.RandomState(division.seed).permutation(len(rows))[:count]
        ordered = sorted(names)
        test = {ordered[k] for k in drawn}
        splits = {name: "test" if name in test else "train" for name in names}
    else:
        splits = _listed_splits(division, set(names), form, problems)
        rest = (
            "" if division.train_list and division.test_list else "test" if division.train_list else "train"
        )
        splits = {name: splits.get(name, rest) for name in names}
        left = sum(not split for split in splits.values())
        if left:
            notes.append(f"{left} of {len(rows)} images are in neither list and are left out")
    found = [dataclasses.replace(row, split=splits[name]) for row, name in zip(rows, names, strict=True)]
    return [row for row in found if row.split]


def _listed_splits(division: Division, known: set[str], form: Form, problems: list[str]) -> dict[str, str]:
    splits: dict[str, str] = {}
    where: dict[str, str] = {}
    for split, file in zip(SPLITS, (division.train_list, division.test_list), strict=True):
        for number, line in enumerate(read_lines(file) if file else (), 1):
            name = composed(line.strip().replace("\\", "/").removeprefix("./"))
            if not name:
                continue
            name = name if name in known else name + form.suffix
            if name not in known:
                problems.append(f"{file}:{number}: no line of the table names the image {name!r}")
            elif name in where:
                problems.append(f"{file}:{number}: image {name!r} is also in {where[name]}")
            else:
                splits[name], where[name] = split, f"{file}:{number}"
    return splits


def _classes(order: Path, tables: Sequence[Table], rows: Sequence[Row], form: Form) -> tuple[str, ...]:
    """The classes in the order of the label columns."""
    problems: list[str] = []
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
        _raise(joined_classes(first, form.separator))
        lacks = f"is a class of no training image; if it is meant, list all classes in {order}"
    for table in tables:
        for name in table.columns or ():
            if name not in classes:
                problems.append(f"{table.file}:1: class {name!r} {lacks}{nearest(name, classes)}")
        for name in classes if table.columns is not None else ():
            if name not in (table.columns or ()):
                problems.append(f"{table.file}:1: class {name!r} has no column")
    _raise(problems)
    known = set(classes)
    for row in rows:
        problems += [
            f"{row.where}: class {name!r} {lacks}{nearest(name, classes)}"
            for name in row.classes
            if name not in known
        ]
    _raise(problems)
    return classes
