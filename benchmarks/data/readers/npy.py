"""Reader of the four-array layout of the single-positive-multi-label code base.

`formatted_{train,val}_images.npy` (N texts) and `formatted_{train,val}_labels.npy` (N x K, 0 or 1),
used by CAP and its relatives; "val" is the test set. The order of the arrays is kept, because the
published split indexes it. The layout does not name the classes: their names come from the dataset, or
from a `classes.txt` beside the arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.dataset import ImageSet
from benchmarks.data.readers.base import Contents, Counts, Request, labelled_counts
from benchmarks.data.readers.files import check_files, check_unique, composed, holder, relative
from benchmarks.data.readers.rules import read_classes
from methods.errors import UserError


def present(root: Path) -> bool:
    """Whether a folder holds the layout: its first array decides, the others are then required."""
    return (root / "formatted_train_images.npy").is_file()


def read(request: Request) -> Contents | None:
    """A user's own arrays with `classes.txt`; None where they are absent.

    Raises:
        UserError: as `read_arrays`, or `classes.txt` is missing or wrong.
    """
    if not present(request.root):
        return None
    folders = [request.images] if request.images else ["images", "."]
    return read_arrays(request, read_classes(request.root / "classes.txt"), folders, None)


def read_arrays(
    request: Request,
    classes: tuple[str, ...],
    folders: Sequence[str],
    classic: Counts | None,
    name_of: Callable[[PurePosixPath], str] = str,
    *,
    count_all: bool = False,
) -> Contents:
    """Both splits.

    Args:
        request: folder and options.
        classes: K class names, in the order of the columns.
        folders: see `read_split`.
        classic: numbers of images of the published copy.
        name_of: makes an image's id from its path.
        count_all: compare the number of all rows with `classic`; by default that of the labelled images.

    Raises:
        UserError: as `read_split`.
    """
    (train, listed), (test, test_listed) = (
        read_split(request.root, split, classes, folders, name_of, empty=request.empty)
        for split in ("train", "val")
    )
    counts = (listed, test_listed) if count_all else labelled_counts(train, test)
    return Contents(classes, train, test, counts, classic)


def read_split(
    root: Path,
    split: str,
    classes: Sequence[str],
    folders: Sequence[str],
    name_of: Callable[[PurePosixPath], str] = str,
    *,
    empty: str = "drop",
) -> tuple[ImageSet, int]:
    """Read one split.

    Args:
        root: folder of the arrays.
        split: "train" or "val".
        classes: K class names, for the number of columns.
        folders: folders that the paths may be relative to, themselves relative to `root`, in order of
            preference; the first that holds the first image is used for all.
        name_of: makes an image's id from its path.
        empty: "drop" or "keep" images without a label.

    Returns:
        The images in the order of the arrays, and how many of them the arrays list.

    Raises:
        UserError: an array or image is missing or wrong; one line with the file.
    """
    image_file = root / f"formatted_{split}_images.npy"
    label_file = root / f"formatted_{split}_labels.npy"
    names, values = _load(image_file), _load(label_file)
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise UserError(f"{image_file}: {names.dtype} {names.shape}; texts of shape (N,) expected")
    if values.shape != (len(names), len(classes)) or values.dtype.kind not in "biuf":
        raise UserError(
            f"{label_file}: {values.dtype} {values.shape}; numbers of shape "
            f"({len(names)}, {len(classes)}) expected"
        )
    wrong = np.argwhere((values != 0) & (values != 1))
    if len(wrong):
        row, column = wrong[0]
        raise UserError(
            f"{label_file}: {values[row, column]!r} at row {row} column {column}; every entry must be 0 or 1"
        )
    paths = [relative(f"{image_file}: entry {k}", _text(name), root) for k, name in enumerate(names)]
    ids = tuple(_id(f"{image_file}: entry {k}", path, name_of) for k, path in enumerate(paths))
    # Compared in one form of Unicode: both forms of a name are the same file in many archives.
    forms = tuple(map(composed, ids))
    check_unique(forms, lambda k, first: f"{image_file}: entry {k} ({ids[k]!r}) is also entry {first}")
    folder = holder([root / name for name in folders], paths[0] if paths else None)
    images = ImageSet(ids, tuple(folder / path for path in paths), values.astype(np.uint8))
    if empty == "drop":
        images = images.with_label()
    found = check_files(images.paths, str(image_file))
    return ImageSet(images.ids, found, images.labels), len(names)


def _load(file: Path) -> NDArray:
    try:
        array = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except (ValueError, EOFError, OSError, MemoryError, BadZipFile) as error:
        raise UserError(f"{file}: not a plain NumPy array: {error}".splitlines()[0]) from None
    if not isinstance(array, np.ndarray):  # an .npz under another name
        raise UserError(f"{file}: not a plain NumPy array: an archive of several")
    return array


def _id(where: str, path: PurePosixPath, name_of: Callable[[PurePosixPath], str]) -> str:
    try:
        return name_of(path)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _text(name: str | bytes) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
