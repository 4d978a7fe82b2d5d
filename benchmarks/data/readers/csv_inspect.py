"""Look at a table as people have it, and propose the dataset line of a grid that reads it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.data.readers.csv_file import FALSE, TRUE, records
from benchmarks.data.readers.files import read_lines
from methods.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".heic")
NOTHING = ("no finding", "none", "nothing", "normal", "nan", "no findings", "background")
DELIMITERS = (",", ";", "\t", "|")
SEPARATORS = ("|", ";", ",", "/", " ")
LOOKED = 20_000
"""Lines, and files of a folder, that are looked at."""


def propose(root: Path, name: str = "") -> list[str]:
    """What is in a table, and a dataset line for a grid.

    Args:
        root: folder of the dataset.
        name: the table, relative to the root; empty for the only one there, or the largest.

    Returns:
        Lines: remarks that start with "#", and the line to paste.

    Raises:
        UserError: there is no table, or it has no column of paths or of classes.
    """
    file = root / name if name else _largest(root)
    delimiter = _delimiter(file)
    lines = list(itertools.islice(records(file, delimiter), LOOKED + 1))
    if len(lines) < 2:
        raise UserError(f"{file}: no line below the header")
    header = [cell.strip() for cell in lines[0][1]]
    rows = [cells for _, cells in lines[1:] if len(cells) == len(header)]
    columns = {k: [cells[k].strip() for cells in rows] for k in range(len(header))}
    remarks = [f"# {file}: {len(lines) - 1} lines looked at, columns {', '.join(map(repr, header))}"]
    files = _image_files(root)
    path, suffix = _path_column(file, header, columns, files)
    table: dict[str, object] = {"name": "csv", "alias": _alias(root), "root": str(root)}
    if name or file.name not in ("labels.csv", "train.csv"):
        table["train"] = str(file.relative_to(root))
    if delimiter != ",":
        table["delimiter"] = "tab" if delimiter == "\t" else delimiter
    if header[path].casefold() != "path":
        table["path_column"] = header[path]
    if suffix:
        table["suffix"] = suffix
    images = _images(file, root, columns[path], suffix, files)
    if images:
        table["images"] = images
    elif not files:
        remarks.append(f"# no image is below {root}: say where they are with images")
    split = [k for k, title in enumerate(header) if title.casefold() == "split"]
    table |= _labels(file, header, columns, {path, *split}, remarks)
    table |= _division(root, columns[path], suffix, bool(split), remarks)
    if len(set(columns[path])) < len(rows):
        table["duplicates"] = "merge"
        remarks.append("# several lines name one image: their classes are merged")
    pairs = ", ".join(f"{key} = {_toml(value)}" for key, value in table.items())
    return [*remarks, f"datasets = [{{ {pairs} }}]"]


def _largest(root: Path) -> Path:
    found = sorted(file for kind in ("*.csv", "*.tsv") for file in root.glob(kind))
    if not found:
        raise UserError(f"{root}: no .csv or .tsv file is there; name the table with --train")
    return max(found, key=lambda file: file.stat().st_size)


def _delimiter(file: Path) -> str:
    """The delimiter that divides the header into the most columns."""
    lines = read_lines(file)
    first = next((line for line in lines if line.strip()), "")
    return max(DELIMITERS, key=first.count)


def _image_files(root: Path) -> dict[str, str]:
    """Names of images below the root, and the folder of each, relative to the root."""
    found: dict[str, str] = {}
    inside = (file for file in root.rglob("*") if file.suffix.casefold() in SUFFIXES)
    for file in itertools.islice(inside, LOOKED):
        found.setdefault(file.name, file.parent.relative_to(root).as_posix())
    return found


def _path_column(
    file: Path, header: Sequence[str], columns: dict[int, list[str]], files: dict[str, str]
) -> tuple[int, str]:
    """The column of the paths, and the suffix that they lack."""
    for k, cells in columns.items():
        if sum(cell.casefold().endswith(SUFFIXES) for cell in cells) > len(cells) / 2:
            return k, ""
    stems = {Path(name).stem: Path(name).suffix for name in files}
    for k, cells in columns.items():
        known = [stems[name] for cell in cells if (name := cell.rpartition("/")[2]) in stems]
        if len(known) > len(cells) / 2:
            return k, max(set(known), key=known.count)
    for k, title in enumerate(header):
        if title.casefold() == "path":
            return k, ""
    raise UserError(f"{file}: no column holds names of images ({', '.join(SUFFIXES[:4])}, …)")


def _images(file: Path, root: Path, cells: Sequence[str], suffix: str, files: dict[str, str]) -> str:
    """The folder that paths are relative to; empty for that of the table."""
    paths = [cell.replace("\\", "/") + suffix for cell in cells]
    if any((file.parent / path).is_file() for path in paths[:50]):
        return ""
    places: set[str] = set()
    for path in paths:
        outer, _, name = path.rpartition("/")
        place = files.get(name)
        if place is not None and place.endswith(outer):
            places.add(place.removesuffix(outer).rstrip("/") or ".")
    if len(places) < 2:
        return places.pop() if places else ""
    # Several folders, such as images_001/images and images_002/images.
    parts = [place.split("/") for place in sorted(places)]
    if len({len(some) for some in parts}) > 1:
        return ""
    names = [_pattern(sorted(set(some))) for some in zip(*parts, strict=True)]
    return "/".join(names)


def _pattern(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    start = 0
    while all(len(name) > start and name[start] == names[0][start] for name in names):
        start += 1
    return names[0][:start] + "*"


def _labels(
    file: Path, header: Sequence[str], columns: dict[int, list[str]], taken: set[int], remarks: list[str]
) -> dict[str, object]:
    """The options for the classes: a column of names, or columns of 0 and 1."""
    free = [k for k in columns if k not in taken and header[k]]
    found: list[tuple[float, int, str]] = []
    for k in free:
        texts = [cell for cell in columns[k] if cell and not _is_number(cell)]
        if len(texts) < len(columns[k]) / 4:
            continue
        usual = header[k].casefold() in ("label", "labels")
        for separator in SEPARATORS:
            parts = [part.strip() for cell in texts for part in cell.split(separator)]
            if any(separator in cell for cell in texts):
                # Good: few names that come often, some of them alone.
                alone = len(set(parts) & set(texts)) / len(set(parts))
                found.append((usual + alone + len(parts) / len(set(parts)) / len(texts), k, separator))
        if usual:
            found.append((1.0, k, ";"))
    hot = [k for k in free if set(columns[k]) and {c.casefold() for c in columns[k]} <= {*TRUE, *FALSE}]
    best = max(found, default=None)
    if best is not None and (best[0] >= 1 or len(hot) < 2):
        _, k, separator = best
        names = sorted({part.strip() for cell in columns[k] for part in cell.split(separator)} - {""})
        remarks.append(f"# {len(names)} names in {header[k]!r}: {', '.join(names[:30])}")
        options: dict[str, object] = {}
        others = [j for j in free if j != k]
        if others or header[k].casefold() not in ("label", "labels"):
            options["labels_column"] = header[k]
        if separator != ";":
            options["separator"] = separator
        return options | _nothing(names)
    if not hot:
        raise UserError(f"{file}: no column holds names of classes, and none holds only 0 and 1")
    remarks.append(f"# {len(hot)} columns of 0 and 1: {', '.join(header[k] for k in hot[:30])}")
    rest = [header[k] for k in columns if k not in taken and k not in hot]
    options = {}
    if rest:
        options["columns"] = [header[k] for k in hot]
        remarks.append(f"# ignored: {', '.join(map(repr, rest))}")
    return options | _nothing([header[k] for k in hot])


def _nothing(names: Sequence[str]) -> dict[str, object]:
    found = [name for name in names if name.casefold() in NOTHING]
    return {"nothing": found[0]} if found else {}


def _division(
    root: Path, cells: Sequence[str], suffix: str, split: bool, remarks: list[str]
) -> dict[str, object]:
    """Lists of images in the folder, or a share."""
    if split:
        return {}
    known = {cell.replace("\\", "/") for cell in cells} | {cell + suffix for cell in cells}
    lists: dict[str, str] = {}
    for file in sorted(root.glob("*.txt")):
        try:
            lines = [line.strip() for line in read_lines(file)[:LOOKED] if line.strip()]
        except UserError:
            continue
        if lines and sum(line in known for line in lines) > len(lines) / 2:
            lists.setdefault("test" if "test" in file.name.casefold() else "train", file.name)
    if lists:
        return {f"{name}_list": file for name, file in sorted(lists.items(), reverse=True)}
    remarks.append(
        "# nothing says which images are for the test: 20 % are drawn; better is a list (test_list)"
    )
    return {"test_share": 0.2}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.casefold() != "nan"


def _alias(root: Path) -> str:
    letters = [letter if letter.isascii() and letter.isalnum() else "-" for letter in root.resolve().name]
    return "".join(letters).strip("-") or "mine"


def _toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)
