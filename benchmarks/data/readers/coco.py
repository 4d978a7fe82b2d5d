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
from benchmarks.data.readers.files import (
    check_files,
    check_unique,
    composed,
    holder,
    is_name,
    relative,
    unreadable,
)
from benchmarks.data.readers.index import Parsed, parsed
from benchmarks.data.readers.rules import class_name
from methods import kinds
from methods.errors import UserError

READER = "coco-2"
"""Name and version of `_parse`, for its indexes: raise the number when its result changes."""

USUAL = ("annotations/instances_{}.json", "{}/_annotations.coco.json", "{}/labels.json")
"""Names of instances files: COCO's, Roboflow's and FiftyOne's."""

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
        request.root / (name or _usual(request.root, split))
        for split, name in (("train", request.train), ("test", request.test))
    )
    if not (request.train or request.test or train.is_file() or test.is_file()):
        return None
    folders = (_folders(request, train, request.train_images), _folders(request, test, request.test_images))
    return read_files(request, (train, folders[0]), (test, folders[1]))


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
    classes, train_images, test_images, parents = _read_pair(
        train, test, empty=request.empty, order=request.order, index=request.index
    )
    unused = [
        name
        for name in parents
        if not any(images.labels[:, classes.index(name)].any() for images in (train_images, test_images))
    ]
    notes = tuple(
        f"category {name!r} is left out: no annotation uses it, and it is the supercategory of other ones"
        for name in unused
    )
    if unused:
        kept = [k for k, name in enumerate(classes) if name not in unused]
        classes = tuple(classes[k] for k in kept)
        train_images, test_images = (
            ImageSet(images.ids, images.paths, np.ascontiguousarray(images.labels[:, kept]))
            for images in (train_images, test_images)
        )
    counts = labelled_counts(train_images, test_images)
    return Contents(classes, train_images, test_images, counts, classic, notes)


def _coco_id(path: PurePosixPath) -> str:
    """COCO's image id from `train2014/COCO_train2014_000000000009.jpg`: "9"."""
    digits = path.stem.rsplit("_", 1)[-1]
    if not digits.isdecimal():
        raise UserError(f"{str(path)!r} does not end in COCO's image number")
    return str(int(digits))


def _usual(root: Path, split: str) -> str:
    """The file of a split where none is named: COCO's own, or as exporters write it."""
    names = [name.format(split) for name in USUAL]
    return next((name for name in names if (root / name).is_file()), names[0])


def _folders(request: Request, file: Path, own: str) -> list[Path]:
    """Where the images of an instances file may be, in order of preference.

    Args:
        request: its root and its folder of all images.
        file: the instances file.
        own: the folder that is named for this split; empty for none.
    """
    root, beside = request.root, file.parent
    splits = [file.stem.removeprefix("instances_")] + ([beside.name] if beside != root else [])
    if own:
        places = [root / own, beside / own]
    elif request.images:
        images = root / request.images
        places = [images, *(images / split for split in splits), beside / request.images]
    else:
        places = [root / name for split in splits for name in (f"images/{split}", split)]
        places += [root / "images", root, beside / "data", beside, beside / "images"]
        places += [root / "data" / split for split in splits] + [root / "data"]
    return list(dict.fromkeys(places))


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
    content, found = _read_split(file, images, empty, order, index)
    return content.classes, found


def _read_split(
    file: Path, images: Images, empty: str, order: str, index: Path | None
) -> tuple[Parsed, ImageSet]:
    content = parsed(file, READER, index, _parse)
    folders = [images] if isinstance(images, Path) else images
    folder = holder(folders, content.names[0] if content.names else None)
    kept = (
        np.arange(len(content.ids)) if empty == "keep" else np.flatnonzero(content.labels.any(axis=1))
    ).tolist()
    if order == "published":
        kept.sort(key=content.ids.__getitem__)
    hint = "unpack the image archive completely"
    if len(folders) > 1 and content.names and not (folder / content.names[0]).is_file():
        hint = (
            f"its first image is in none of {', '.join(map(str, folders))}; name the folder of the images "
            "(images, or train_images and test_images)"
        )
    paths = check_files([folder / content.names[k] for k in kept], str(file), hint)
    ids = tuple(content.ids[k] for k in kept)
    return content, ImageSet(ids, paths, content.labels[kept])


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
    return _read_pair(train, test, empty=empty, order=order, index=index)[:3]


def _read_pair(
    train: tuple[Path, Images], test: tuple[Path, Images], *, empty: str, order: str, index: Path | None
) -> tuple[tuple[str, ...], ImageSet, ImageSet, tuple[str, ...]]:
    """The same as `read_pair`, and the classes that a file names as the group of other ones."""
    content, train_images = _read_split(*train, empty, order, index)
    test_content, test_images = _read_split(*test, empty, order, index)
    names, test_names = content.classes, test_content.classes
    if names != test_names:
        pairs = zip((*names, None), (*test_names, None), strict=False)
        k, (one, other) = next((k, pair) for k, pair in enumerate(pairs) if pair[0] != pair[1])
        raise UserError(
            f"{test[0]}: categories[{k}].name: {other!r}, but {one!r} in {train[0]}; "
            "both files must list the same categories in the same order"
        )
    return names, train_images, test_images, content.parents


def _parse(file: Path) -> Parsed:
    content = _load(file)
    columns, classes, parents = _categories(file, content)
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
    forms = [composed(name) for name in names]
    numbers = list(rows)
    check_unique(
        forms,
        lambda k, first: (
            f"{file}: images[{k}].file_name: {names[k]!r} (id {numbers[k]!r}) is also "
            f"images[{first}].file_name (id {numbers[first]!r}); list a picture once, with all annotations"
        ),
    )
    labels = _labels(file, _entries(file, content, "annotations"), rows, columns)
    return Parsed(classes, ids, tuple(names), labels, parents)


def _categories(
    file: Path, content: dict[str, Any]
) -> tuple[dict[Any, int], tuple[str, ...], tuple[str, ...]]:
    """The column of each category's id, the classes, and those of them that are groups of others.

    A group that has the name of one of its members, as some tools write it, is left out if no annotation uses
    it.
    """
    entries = _entries(file, content, "categories")
    found: list[tuple[int, Any, str, str]] = []
    numbers: set[Any] = set()
    for k, category in enumerate(entries):
        where = f"{file}: categories[{k}]"
        number, name = _field(where, category, "id"), _field(where, category, "name")
        if number in numbers:
            raise UserError(f"{where}.id: {number!r} is listed twice")
        numbers.add(number)
        if not isinstance(name, str):
            raise UserError(f"{where}.name: {name!r} is not a name")
        group = composed(str(category.get("supercategory") or "").strip())
        found.append((k, number, class_name(f"{where}.name:", name), group))
    columns: dict[Any, int] = {}
    classes: dict[str, int] = {}
    names = [name for _, _, name, _ in found]
    for k, number, name, group in found:
        twins = [other for other in found if other[2] == name] if names.count(name) > 1 else []
        if len(twins) > 1 and group != name and any(other[3] == name for other in twins):
            used = {
                entry.get("category_id")
                for entry in _entries(file, content, "annotations")
                if isinstance(entry, dict) and isinstance(entry.get("category_id"), int | str)
            }
            if number not in used:
                continue
        if name in classes:
            raise UserError(
                f"{file}: categories[{k}].name: {name!r} is also categories[{classes[name]}].name; "
                "every class needs a name of its own"
            )
        columns[number] = len(columns)
        classes[name] = k
    parents = tuple(
        name
        for name, k in classes.items()
        if any(group == name and other != k for other, _, _, group in found)
    )
    return columns, tuple(classes), parents


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
        what = kinds.stand_in(kinds.head(file))
        if what:
            raise UserError(f"{file}: not valid JSON: {what}") from None
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
