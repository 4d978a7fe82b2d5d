"""Reader of the four-array layout of the single-positive-multi-label code base.

`formatted_{train,val}_images.npy` (N texts) and `formatted_{train,val}_labels.npy` (N x K, 0 or 1),
used by CAP and its relatives; "val" is the test set. The order of the arrays is kept, because the
published split indexes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.types import ImageSet, check_files
from methods.errors import UserError


def present(root: Path) -> bool:
    """Whether a folder holds the layout: its first array is enough, the rest is then required."""
    return (root / "formatted_train_images.npy").is_file()


def read_split(
    root: Path,
    split: str,
    classes: Sequence[str],
    folders: Sequence[str],
    name_of: Callable[[PurePosixPath], str] = str,
) -> ImageSet:
    """Read one split.

    Args:
        root: folder of the arrays.
        split: "train" or "val".
        classes: K class names, for the number of columns.
        folders: folders below `root` that the paths may be relative to, in order of preference;
            the one that holds the first image is taken for all.
        name_of: makes an image's id from its path.

    Returns:
        The images in the order of the arrays, those without a label dropped.

    Raises:
        UserError: an array or image is missing or wrong; one line with the file.
    """
    image_file = root / f"formatted_{split}_images.npy"
    label_file = root / f"formatted_{split}_labels.npy"
    names, values = _load(image_file), _load(label_file)
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise UserError(f"{image_file}: {names.dtype} {names.shape}; texts of shape (N,) expected")
    if values.shape != (len(names), len(classes)) or values.dtype.kind not in "biuf":
        raise UserError(f"{label_file}: {values.dtype} {values.shape}; numbers of shape "
                        f"({len(names)}, {len(classes)}) expected")  # fmt: skip
    wrong = np.argwhere((values != 0) & (values != 1))
    if len(wrong):
        row, column = wrong[0]
        raise UserError(f"{label_file}: {values[row, column]!r} at row {row} column {column}; "
                        "every entry must be 0 or 1")  # fmt: skip
    relative = [_relative(image_file, k, name) for k, name in enumerate(names)]
    ids = tuple(name_of(path) for path in relative)
    seen: dict[str, int] = {}
    for k, name in enumerate(ids):
        if name in seen:
            raise UserError(f"{image_file}: entry {k} ({name!r}) is also entry {seen[name]}")
        seen[name] = k
    base = root
    if relative:
        base = next((root / f for f in folders if (root / f / relative[0]).is_file()), root)
    paths = tuple(base / path for path in relative)
    images = ImageSet(ids, paths, values.astype(np.uint8)).with_label()
    check_files(images.paths, str(image_file))
    return images


def _load(file: Path) -> NDArray:
    try:
        return np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{file}: not a plain NumPy array: {error}".splitlines()[0]) from None


def _relative(file: Path, entry: int, name: str | bytes) -> PurePosixPath:
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    path = PurePosixPath(text.replace("\\", "/"))
    if not path.name or path.is_absolute() or ".." in path.parts:
        raise UserError(f"{file}: entry {entry} ({text!r}) is not a path below {file.parent}")
    return path
