"""Reader of COCO-style instances files: COCO itself, GlyphScenes and anything written like them.

A class is a position in `categories`; an image's labels are the categories of its annotations,
crowds and small objects included. By default images without an annotation are dropped and images
are sorted by their id *as a string*, as the published split expects
(elijahcole/single-positive-multi-label).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.dataset import ImageSet
from benchmarks.data.readers import npy
from benchmarks.data.readers.base import Contents, Counts, Request, labelled_counts
from benchmarks.data.readers.class_names import COCO
from benchmarks.data.readers.files import check_files, holder, is_name, relative, unreadable
from benchmarks.data.readers.index import Parsed, parsed
from methods.errors import UserError

READER = "coco-1"
"""Name and version of `_parse`, for its indexes: raise the number when its result changes."""

Images = Path | Sequence[Path]
"""The folder of the images of a file, or several in order of preference."""


def read_coco2014(request: Request) -> Contents | None:
    """COCO 2014, from the four arrays or the official instances files; None where both are absent.

    Raises:
        UserError: as `read_pair` or `npy.read_arrays`.
    """
    root, classic = request.root, (82081, 40137)
    if npy.present(root):
        return npy.read_arrays(request, COCO, ["."], classic, _coco_id)
    train, test = (
        (root / "annotations" / f"instances_{split}.json", root / split) for split in ("train2014", "val2014")
    )
    if not (train[0].is_file() and test[0].is_file()):
        return None
    return read_files(request, train, test, classic)


def read(request: Request) -> Contents | None:
    """A user's own instances files; None where none is named and none has the usual name.

    Raises:
        UserError: as `read_pair`.
    """
    train, test = (
        request.root / (name or f"annotations/instances_{split}.json")
        for split, name in (("train", request.train), ("test", request.test))
    )
    if not (request.train or request.test or train.is_file() or test.is_file()):
        return None
    return read_files(request, (train, _folders(request, train)), (test, _folders(request, test)))


def read_files(
    request: Request, train: tuple[Path, Images], test: tuple[Path, Images], classic: Counts | None = None
) -> Contents:
    """Two instances files with the options of a request.

    Args:
        request: options, and folder of the indexes.
        train: instances file and images of the training split.
        test: the same of the test split.
        classic: numbers of images of the published copy.

    Raises:
        UserError: as `read_pair`.
    """
    classes, train_images, test_images = read_pair(
        train, test, empty=request.empty, order=request.order, index=request.index
    )
    return Contents(classes, train_images, test_images, labelled_counts(train_images, test_images), classic)


def _coco_id(path: PurePosixPath) -> str:
    """COCO's image id from `train2014/COCO_train2014_000000000009.jpg`: "9"."""
    digits = path.stem.rsplit("_", 1)[-1]
    if not digits.isdecimal():
        raise UserError(f"{str(path)!r} does not end in COCO's image number")
    return str(int(digits))


def _folders(request: Request, file: Path) -> list[Path]:
    """Where the images of `instances_<split>.json` may be, in order of preference."""
    if request.images:
        return [request.root / request.images]
    split = file.stem.removeprefix("instances_")
    return [request.root / name for name in (f"images/{split}", split, "images", ".")]


# -- instances files ----------------------------------------------------------------------------


def read_instances(
    file: Path,
    images: Images,
    *,
    empty: str = "drop",
    order: str = "published",
    index: Path | None = None,
) -> tuple[tuple[str, ...], ImageSet]:
    """Read one split.

    Args:
        file: the instances JSON.
        images: folder that the `file_name` fields are relative to; of several, the first that holds the
            first image of the file.
        empty: "drop" or "keep" images without an annotation.
        order: "published" sorts by id as a string, "file" keeps the order of `images`.
        index: folder of indexes, see `benchmarks.data.readers.index`; None always parses the file.

    Returns:
        Class names in the order of `categories`, and the images.

    Raises:
        UserError: the file or an image is missing, or a field is wrong; one line with file and
            field.
    """
    content = parsed(file, READER, index, _parse)
    folders = [images] if isinstance(images, Path) else images
    folder = holder(folders, content.names[0] if content.names else None)
    kept = (
        np.arange(len(content.ids)) if empty == "keep" else np.flatnonzero(content.labels.any(axis=1))
    ).tolist()
    if order == "published":
        kept.sort(key=content.ids.__getitem__)
    paths = check_files([folder / content.names[k] for k in kept], str(file))
    ids = tuple(content.ids[k] for k in kept)
    return content.classes, ImageSet(ids, paths, content.labels[kept])


def read_pair(
    train: tuple[Path, Images],
    test: tuple[Path, Images],
    *,
    empty: str = "drop",
    order: str = "published",
    index: Path | None = None,
) -> tuple[tuple[str, ...], ImageSet, ImageSet]:
    """Read the training and the test split, each an instances file and its folder (or folders) of images.

    Raises:
        UserError: as `read_instances`, or the two files have different categories.
    """
    names, train_images = read_instances(*train, empty=empty, order=order, index=index)
    test_names, test_images = read_instances(*test, empty=empty, order=order, index=index)
    if names != test_names:
        pairs = zip((*names, None), (*test_names, None), strict=False)
        k, (one, other) = next((k, pair) for k, pair in enumerate(pairs) if pair[0] != pair[1])
        raise UserError(
            f"{test[0]}: categories[{k}].name: {other!r}, but {one!r} in {train[0]}; "
            "both files must list the same categories in the same order"
        )
    return names, train_images, test_images


def _parse(file: Path) -> Parsed:
    content = _load(file)
    columns: dict[Any, int] = {}
    classes: list[str] = []
    for k, category in enumerate(_entries(file, content, "categories")):
        where = f"{file}: categories[{k}]"
        number, name = _field(where, category, "id"), _field(where, category, "name")
        if number in columns:
            raise UserError(f"{where}.id: {number!r} is listed twice")
        if not isinstance(name, str) or not name.strip() or not is_name(name) or name in classes:
            raise UserError(f"{where}.name: {name!r} is not a name or is listed twice")
        columns[number] = k
        classes.append(name)
    rows: dict[Any, int] = {}
    names: list[str] = []
    for k, image in enumerate(_entries(file, content, "images")):
        where = f"{file}: images[{k}]"
        number = _field(where, image, "id")
        if number in rows:
            raise UserError(f"{where}.id: {number!r} is listed twice")
        if isinstance(number, str) and not is_name(number):
            raise UserError(f"{where}.id: {number!r} is not a name")
        rows[number] = k
        names.append(str(relative(f"{where}.file_name", _field(where, image, "file_name"))))
    ids = tuple(str(number) for number in rows)
    if len(set(ids)) != len(ids):  # 7 and "7"
        raise UserError(f"{file}: images: two ids are the same when written as text")
    labels = _labels(file, _entries(file, content, "annotations"), rows, columns)
    return Parsed(tuple(classes), ids, tuple(names), labels)


def _labels(
    file: Path, annotations: list[Any], rows: Mapping[Any, int], columns: Mapping[Any, int]
) -> NDArray[np.uint8]:
    labels = np.zeros((len(rows), len(columns)), dtype=np.uint8)
    for k, annotation in enumerate(annotations):
        try:
            labels[rows[annotation["image_id"]], columns[annotation["category_id"]]] = 1
        except (KeyError, TypeError, IndexError):  # find the field that is wrong, which is slow, only now
            where = f"{file}: annotations[{k}]"
            image_id = _field(where, annotation, "image_id")
            category_id = _field(where, annotation, "category_id")
            if image_id not in rows:
                raise UserError(f"{where}.image_id: there is no image with id {image_id!r}") from None
            raise UserError(f"{where}.category_id: there is no category with id {category_id!r}") from None
    return labels


def _load(file: Path) -> dict[str, Any]:
    try:
        with open(file, encoding="utf-8-sig") as stream:
            content = json.load(stream)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file}: not valid JSON at line {error.lineno} column {error.colno}: {error.msg}"
        ) from None
    except (ValueError, RecursionError) as error:  # such as a number of thousands of digits
        raise UserError(f"{file}: not an instances file: {error}") from None
    except OSError as error:
        raise unreadable(file, error) from None
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
