"""Reader of the official PASCAL VOC tree.

`ImageSets/Main/<class>_<split>.txt` holds one image per line with 1 (present), -1 (absent) or
0 (only difficult objects, which are ignored). Images without a positive are dropped, the rest is
sorted by name; classes are in alphabetical order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.data.names import VOC
from benchmarks.data.types import ImageSet, check_files
from methods.errors import UserError


def find_tree(root: Path, year: str) -> Path | None:
    """The folder that holds `ImageSets` and `JPEGImages`, at or below a root; None if absent."""
    for folder in (root / "VOCdevkit" / f"VOC{year}", root / f"VOC{year}", root):
        if (folder / "ImageSets" / "Main").is_dir():
            return folder
    return None


def read_split(tree: Path, split: str) -> tuple[ImageSet, int]:
    """Read one split.

    Args:
        tree: folder that holds `ImageSets` and `JPEGImages`.
        split: "train", "val", "trainval" or "test".

    Returns:
        The images with at least one of the 20 classes, and how many images the split lists.

    Raises:
        UserError: a list or image is missing, or a line is wrong; one line with file and line.
    """
    columns: list[dict[str, int]] = []
    for name in VOC:
        file = tree / "ImageSets" / "Main" / f"{name}_{split}.txt"
        values = _read_list(file)
        if columns and values.keys() != columns[0].keys():
            other = tree / "ImageSets" / "Main" / f"{VOC[0]}_{split}.txt"
            odd = min(values.keys() ^ columns[0].keys())
            here, there = (file, other) if odd in values else (other, file)
            raise UserError(f"{here}: image {odd!r} is not in {there.name}; all lists of a split "
                            "must name the same images")  # fmt: skip
        columns.append(values)
    names = sorted(columns[0])
    labels = np.array([[values[name] == 1 for values in columns] for name in names], dtype=np.uint8)
    labels = labels.reshape(len(names), len(VOC))
    paths = tuple(tree / "JPEGImages" / f"{name}.jpg" for name in names)
    images = ImageSet(tuple(names), paths, labels).with_label()
    check_files(images.paths, f"{tree} ({split})")
    return images, len(names)


def _read_list(file: Path) -> dict[str, int]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; unpack the archive completely") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text at byte {error.start}") from None
    values: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or fields[1] not in ("1", "0", "-1"):
            raise UserError(f"{file}:{number}: {line.strip()!r} is not an image and 1, 0 or -1")
        if "/" in fields[0] or "\\" in fields[0]:
            raise UserError(f"{file}:{number}: {fields[0]!r} is not the name of an image")
        if fields[0] in values:
            raise UserError(f"{file}:{number}: image {fields[0]!r} is listed twice")
        values[fields[0]] = int(fields[1])
    return values
