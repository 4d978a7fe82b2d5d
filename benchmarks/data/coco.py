"""Reader of COCO-style instances files: COCO itself, GlyphScenes and anything written like them.

A class is a position in `categories`; an image's labels are the categories of its annotations,
crowds and small objects included; images without an annotation are dropped; images are sorted by
their id *as a string*, as the published split expects (elijahcole/single-positive-multi-label).
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from benchmarks.data.types import ImageSet, check_files
from methods.errors import UserError


def read_instances(file: Path, images: Path) -> tuple[tuple[str, ...], ImageSet]:
    """Read one split.

    Args:
        file: the instances JSON.
        images: folder that the `file_name` fields are relative to.

    Returns:
        Class names in the order of `categories`, and the images that have an annotation.

    Raises:
        UserError: the file or an image is missing, or a field is wrong; one line with file and
            field.
    """
    content = _load(file)
    categories = _entries(file, content, "categories")
    columns: dict[Any, int] = {}
    names: list[str] = []
    for k, category in enumerate(categories):
        where = f"{file}: categories[{k}]"
        number, name = _field(where, category, "id"), _field(where, category, "name")
        if number in columns:
            raise UserError(f"{where}.id: {number!r} is listed twice")
        if not isinstance(name, str) or name in names:
            raise UserError(f"{where}.name: {name!r} is not a name or is listed twice")
        columns[number] = k
        names.append(name)
    rows: dict[Any, int] = {}
    paths: list[Path] = []
    for k, image in enumerate(_entries(file, content, "images")):
        where = f"{file}: images[{k}]"
        number = _field(where, image, "id")
        if number in rows:
            raise UserError(f"{where}.id: {number!r} is listed twice")
        rows[number] = k
        paths.append(images / _relative(f"{where}.file_name", _field(where, image, "file_name")))
    ids = [str(number) for number in rows]
    if len(set(ids)) != len(ids):  # 7 and "7"
        raise UserError(f"{file}: images: two ids are the same when written as text")
    labels = np.zeros((len(rows), len(names)), dtype=np.uint8)
    for k, annotation in enumerate(_entries(file, content, "annotations")):
        where = f"{file}: annotations[{k}]"
        image_id = _field(where, annotation, "image_id")
        category_id = _field(where, annotation, "category_id")
        if image_id not in rows:
            raise UserError(f"{where}.image_id: there is no image with id {image_id!r}")
        if category_id not in columns:
            raise UserError(f"{where}.category_id: there is no category with id {category_id!r}")
        labels[rows[image_id], columns[category_id]] = 1
    present = labels.any(axis=1)
    order = sorted(np.flatnonzero(present), key=ids.__getitem__)
    chosen = tuple(paths[k] for k in order)
    check_files(chosen, str(file))
    return tuple(names), ImageSet(tuple(ids[k] for k in order), chosen, labels[order])


def read_pair(
    train: tuple[Path, Path], test: tuple[Path, Path]
) -> tuple[tuple[str, ...], ImageSet, ImageSet]:
    """Read training and test split, each an instances file and its folder of images.

    Raises:
        UserError: as `read_instances`, or the two files have different categories.
    """
    names, train_images = read_instances(*train)
    test_names, test_images = read_instances(*test)
    if names != test_names:
        pairs = zip((*names, None), (*test_names, None), strict=False)
        k, (one, other) = next((k, pair) for k, pair in enumerate(pairs) if pair[0] != pair[1])
        raise UserError(
            f"{test[0]}: categories[{k}].name: {other!r}, but {one!r} in {train[0]}; "
            "both files must list the same categories in the same order"
        )
    return names, train_images, test_images


def _load(file: Path) -> dict[str, Any]:
    try:
        with open(file, encoding="utf-8-sig") as stream:
            content = json.load(stream)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file}: not valid JSON at line {error.lineno} column {error.colno}: {error.msg}"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: a {type(content).__name__} where an object is expected")
    return content


def _entries(file: Path, content: dict[str, Any], key: str) -> list[Any]:
    value = content.get(key)
    if not isinstance(value, list):
        raise UserError(f"{file}: field {key!r} is missing or not a list")
    return value


def _field(where: str, entry: Any, key: str) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, int | str):
        raise UserError(f"{where}.{key}: missing, or neither a number nor a text")
    return value


def _relative(where: str, name: Any) -> PurePosixPath:
    path = PurePosixPath(str(name).replace("\\", "/"))
    if not path.name or path.is_absolute() or ".." in path.parts:
        raise UserError(f"{where}: {name!r} is not a path below the folder of images")
    return path
