r"""Reader of NUS-WIDE's official text files.

`ImageList/TrainImagelist.txt` and `TestImagelist.txt` list 161,789 and 107,859 images, one path a
line (`actor\0001_2124494179.jpg`; some copies have `C:\ImageData\Flickr\` before it).
`Groundtruth/TrainTestLabels/Labels_<concept>_Train.txt` and `_Test.txt` hold one 0 or 1 for each of
them. `ConceptsList/Concepts81.txt` lists the 81 concepts, in alphabetical order. Archives are
unpacked below the root or below `NUS-WIDE/`, with or without the folders before the files.

The order of the lists is kept. Images without a label are dropped by default, which leaves 125,449
and 83,898.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.dataset import ImageSet
from benchmarks.data.readers import npy
from benchmarks.data.readers.base import Contents, Request
from benchmarks.data.readers.class_names import NUS
from benchmarks.data.readers.files import (
    check_files,
    check_unique,
    holder,
    read_lines,
    relative,
    unreadable,
)
from benchmarks.data.readers.rules import read_classes
from methods.errors import UserError, nearest

TREES = (".", "NUS-WIDE", "nus-wide", "NUSWIDE")
IMAGES = ("Flickr", "images")


def read(request: Request) -> Contents | None:
    """NUS-WIDE, from the four arrays (the re-crawl of the CAP family) or the official files.

    Returns:
        None where both are absent.

    Raises:
        UserError: as `read_split` or `npy.read_arrays`.
    """
    root, images = request.root, request.images
    if npy.present(root):
        folders = [images] if images else ["Flickr", "."]
        return npy.read_arrays(request, NUS, folders, (150000, 60260))
    tree = find_tree(root)
    if tree is None:
        return None
    places = [root / images] if images else image_folders(root, tree)
    (train, listed), (test, test_listed) = (
        read_split(tree, split, places, empty=request.empty) for split in ("Train", "Test")
    )
    return Contents(NUS, train, test, (listed, test_listed), (161789, 107859))


def find_tree(root: Path) -> Path | None:
    """The folder that holds the image lists, at or below a root; None if absent."""
    for name in TREES:
        if _place(root / name, "ImageList", "TrainImagelist.txt").is_file():
            return root / name
    return None


def read_split(
    tree: Path, split: str, folders: Sequence[Path], *, empty: str = "drop"
) -> tuple[ImageSet, int]:
    """Read one split.

    Args:
        tree: folder of the text files.
        split: "Train" or "Test".
        folders: folders that the paths may be relative to; the first that holds the first image is used
            for all.
        empty: "drop" or "keep" images without a label.

    Returns:
        The images in the order of the list, named by their paths, and how many of them the split
        lists.

    Raises:
        UserError: a file or image is missing or wrong; one line with file and line.
    """
    _check_concepts(tree)
    file = _place(tree, "ImageList", f"{split}Imagelist.txt")
    lines = read_lines(file, "; unpack the archive of the image lists completely")
    numbers = [number for number, line in enumerate(lines, 1) if line.strip()]
    paths = [_image(f"{file}:{number}", lines[number - 1].strip()) for number in numbers]
    ids = tuple(str(path) for path in paths)
    check_unique(
        ids, lambda k, first: f"{file}:{numbers[k]}: image {ids[k]!r} is also in line {numbers[first]}"
    )
    labels = np.empty((len(ids), len(NUS)), dtype=np.uint8)
    for k, concept in enumerate(NUS):
        name = f"Labels_{concept}_{split}.txt"
        label_file = _place(tree, "Groundtruth", "TrainTestLabels", name)
        values = _read_labels(label_file)
        if len(values) != len(ids):
            raise UserError(
                f"{label_file}: {len(values):,} labels, where {file.name} lists "
                f"{len(ids):,} images; unpack both archives anew"
            )
        labels[:, k] = values
    folder = holder(folders, paths[0] if paths else None)
    images = ImageSet(ids, tuple(folder / path for path in paths), labels)
    if empty == "drop":
        images = images.with_label()
    return ImageSet(images.ids, check_files(images.paths, str(file)), images.labels), len(ids)


def image_folders(root: Path, tree: Path) -> list[Path]:
    """Where the images may be, in order of preference."""
    places = [base / name for base, name in itertools.product((root, tree), IMAGES)]
    return [*places, root, tree]


def _place(tree: Path, *parts: str) -> Path:
    """A file of the official layout, also where it was unpacked without its outer folders.

    Without such a file the official path is returned.
    """
    for start in range(len(parts)):
        file = tree.joinpath(*parts[start:])
        if file.is_file():
            return file
    return tree.joinpath(*parts)


def _check_concepts(tree: Path) -> None:
    """Compare the copy's concepts with the official ones: another list has other label files."""
    file = _place(tree, "ConceptsList", "Concepts81.txt")
    if not file.is_file():
        return
    found = read_classes(file)
    for name in found:
        if name not in NUS:
            raise UserError(f"{file}: no concept of NUS-WIDE is {name!r}{nearest(name, NUS)}")
    missing = [name for name in NUS if name not in found]
    if missing:
        raise UserError(f"{file}: concept {missing[0]!r} is missing; the official list has 81")


def _image(where: str, text: str) -> PurePosixPath:
    parts = text.replace("\\", "/").split("/")
    if "Flickr" in parts:  # an absolute path on the machine where the lists were made
        text = "/".join(parts[parts.index("Flickr") + 1 :])
    return relative(where, text)


def _read_labels(file: Path) -> NDArray[np.uint8]:
    """The labels of a file; read as bytes where the file is well-formed, because there are 22 million.

    Raises:
        UserError: the file is missing, or a line is not 0 or 1.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        hint = "; unpack the archive of the ground truth completely"
        raise unreadable(file, error, hint) from None
    letters = np.frombuffer(content.translate(None, b" \t\r"), dtype=np.uint8)
    ends = letters == ord("\n")
    values = letters[~ends] - np.uint8(ord("0"))
    if (values <= 1).all() and not (~ends[1:] & ~ends[:-1]).any():
        return values
    lines = [(number, line.strip()) for number, line in enumerate(read_lines(file), 1)]
    for number, line in lines:
        if line not in ("", "0", "1"):
            raise UserError(f"{file}:{number}: {line!r} is not 0 or 1")
    return np.array([line == "1" for _, line in lines if line], dtype=np.uint8)
