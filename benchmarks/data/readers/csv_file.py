"""One CSV file of images and classes: its header, its lines, and every problem of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from benchmarks.data.readers.files import composed, is_name, relative, unreadable
from benchmarks.data.readers.rules import class_name
from methods import kinds
from methods.errors import UserError, nearest

SPLITS = ("train", "test")
FORMS = "the header must be path,labels or path,<class>,<class>,… and may have a column split"
OTHER_FORMS = "; `prepare csv --inspect` proposes options for other tables"
TRUE, FALSE = ("1", "1.0", "true"), ("0", "0.0", "false")


@dataclass(frozen=True)
class Form:
    """How a table is written; the defaults are `path,labels,split` with classes separated by `;`.

    Attributes:
        path_column: the column of the image's path; empty for `path`.
        labels_column: the column of the classes; empty for `labels`. All other columns are then ignored.
        columns: the columns that are classes; empty for all. All other columns are then ignored.
        separator: between the classes of a cell.
        ignore: columns that are no classes.
        nothing: the class that says that there is none; empty if there is no such class.
        suffix: what paths lack, such as ".jpg".
        delimiter: between the columns; "tab" is a tab.
    """

    path_column: str = ""
    labels_column: str = ""
    columns: tuple[str, ...] = ()
    separator: str = ";"
    ignore: tuple[str, ...] = ()
    nothing: str = ""
    suffix: str = ""
    delimiter: str = ","

    @property
    def cut(self) -> str:
        """The character between columns."""
        return {"tab": "\t", "\\t": "\t"}.get(self.delimiter, self.delimiter)


@dataclass(frozen=True)
class Row:
    """One image as a file lists it.

    Attributes:
        file: the CSV file.
        line: number of its line, from 1.
        split: "train" or "test"; empty where the file does not say it.
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
class Table:
    """The rows of a file, and the classes of its columns; None where it has no such columns."""

    file: Path
    columns: tuple[str, ...] | None
    rows: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class _Header:
    """Where the parts of an image are: positions of columns."""

    names: list[str]
    path: int
    split: int | None
    labels: int | None
    classes: list[int]


def read_table(file: Path, split: str | None, form: Form, problems: list[str]) -> Table:
    """Read a file.

    Args:
        file: the file.
        split: the split of all its images; None: its column `split` says it; empty: nothing says it.
        form: how it is written.
        problems: wrong lines are added here.

    Raises:
        UserError: the file cannot be read, or its header is wrong.
    """
    lines = records(file, form.cut)
    line, cells = next(lines, (1, None))
    if cells is None:
        raise UserError(f"{file}: the file is empty; {FORMS}")
    header = _header(f"{file}:{line}", cells, form)
    if split is None and header.split is None:
        raise UserError(
            f"{file}:{line}: there is no column split, which says train or test; name two "
            "files (train and test) where each holds one split, lists of images (train_list, test_list), or "
            "the share of the images that are drawn for the test (test_share)"
        )
    if split == "" and header.split is not None:
        raise UserError(
            f"{file}:{line}: there is a column split, and test_share or a list of images too; leave one "
            f"of them out (ignore = [{header.names[header.split]!r}])"
        )
    kept = [header.names[k] for k in header.classes if header.names[k] != composed(form.nothing.strip())]
    table = Table(file, None if header.labels is not None else tuple(kept))
    try:
        for line, cells in lines:
            try:
                table.rows.append(_row(file, line, cells, header, form, split))
            except UserError as error:
                problems.append(str(error))
    except UserError as error:  # what follows cannot be read
        problems.append(str(error))
    return table


def _header(where: str, cells: Sequence[str], form: Form) -> _Header:
    names = [composed(name.strip()) for name in cells]
    kinds = [name.casefold() for name in names]
    for option, wanted in (
        ("path_column", [form.path_column]),
        ("labels_column", [form.labels_column]),
        ("columns", form.columns),
        ("ignore", form.ignore),
    ):
        for name in wanted:
            if name and composed(name) not in names:
                raise UserError(f"{where}: {option}: no column {name!r}{nearest(name, names)}")
    ignored = {composed(name) for name in form.ignore}
    chosen = {composed(name) for name in form.columns}
    # "path", "split" and "labels" are read in any case; the names of classes keep theirs.
    path = _column(names, kinds, form.path_column, ("path",), ignored)
    split = _column(names, kinds, "", ("split",), ignored | chosen)
    lists = [k for k in _column(names, kinds, form.labels_column, ("label", "labels"), ignored) if not chosen]
    taken = {*path, *split, *lists}
    if form.labels_column:
        classes = []
    elif chosen:
        classes = [k for k, name in enumerate(names) if name in chosen]
    else:
        classes = [k for k, name in enumerate(names) if k not in taken and name not in ignored]
    for k in sorted({*taken, *classes}):
        if not names[k] or not is_name(names[k]):
            raise UserError(f"{where}: column {k + 1} has no name; {FORMS}{OTHER_FORMS}")
        same = kinds if k in path or k in split else names
        if same.index(same[k]) != k:
            raise UserError(f"{where}: column {names[k]!r} is there twice")
        if k in classes and names[k] != composed(form.nothing.strip()):
            class_name(f"{where}: column", names[k])
    if len(path) != 1 or len(lists) + bool(classes) != 1:
        raise UserError(f"{where}: {form.cut.join(names)!r}: {FORMS}{OTHER_FORMS}")
    return _Header(names, path[0], split[0] if split else None, lists[0] if lists else None, classes)


def _column(
    names: list[str], kinds: list[str], named: str, usual: tuple[str, ...], ignored: set[str]
) -> list[int]:
    """The positions of a column: of the named one, else of those with a usual name."""
    if named:
        return [k for k, name in enumerate(names) if name == composed(named)]
    return [k for k, kind in enumerate(kinds) if kind in usual and names[k] not in ignored]


def _row(file: Path, line: int, cells: Sequence[str], header: _Header, form: Form, split: str | None) -> Row:
    where = f"{file}:{line}"
    if len(cells) != len(header.names):
        raise UserError(
            f"{where}: {len(cells)} fields where the header has {len(header.names)}; a "
            "text that holds a comma is written in double quotes"
        )
    text = cells[header.path].strip()
    path = relative(where, text + form.suffix if text and not text.endswith(form.suffix) else text)
    part = split or ""
    if header.split is not None:
        part = _split(where, cells[header.split], split)
    if header.labels is not None:
        found = _listed(where, cells[header.labels], form)
    else:
        found = tuple(header.names[k] for k in header.classes if _present(where, header.names[k], cells[k]))
    nothing = composed(form.nothing.strip())
    if nothing and nothing in found:
        others = [name for name in found if name != nothing]
        if others:
            raise UserError(f"{where}: {nothing!r} stands beside {', '.join(map(repr, others))}")
        found = ()
    return Row(file, line, part, path, found)


def records(file: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV file that are not blank, each with the line it starts in.

    Raises:
        UserError: the file is missing, not UTF-8 or no CSV; the message names the line.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise unreadable(file, error) from None
    what = kinds.stand_in(content[:4096])
    if what:
        hint = "; export the table as CSV in UTF-8" if "ZIP" in what else ""  # such as .xlsx
        raise UserError(f"{file}: not a CSV file: {what}{hint}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}:{line}: not UTF-8 text; save the file as UTF-8") from None
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise UserError(f"{file}: delimiter is {delimiter!r}; it must be one character, or tab")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
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


def _listed(where: str, cell: str, form: Form) -> tuple[str, ...]:
    start = f"{where}: class"
    nothing = composed(form.nothing.strip())
    if nothing and composed(cell.strip()) == nothing:
        return (nothing,)  # such as "nan" and "[]", which are no names
    names = [name for name in cell.split(form.separator) if name.strip()]
    if len(names) > 1 and cell.strip()[0] in "[({":
        class_name(start, cell)  # a list that is cut in two is better named as a whole
    clean = (composed(name.strip()) for name in names)
    return tuple(name if nothing == name else class_name(start, name) for name in clean)


def _present(where: str, name: str, cell: str) -> bool:
    value = cell.strip().casefold()
    if value not in (*TRUE, *FALSE):
        raise UserError(f"{where}: column {name!r} is {cell.strip()!r}; it must be 0 or 1")
    return value in TRUE
