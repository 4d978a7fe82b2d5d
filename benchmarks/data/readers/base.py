"""The readers by name: where each looks for its files, and which options it has.

Where a folder holds the four arrays of `benchmarks.data.readers.npy` and another layout besides, the arrays
are read, because the published splits index them; a root without the arrays reads the other. VOC's
options `labels = "xml"` and `difficult = "positive"` ask for what arrays do not say and therefore
for the official tree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from benchmarks.data.dataset import ImageSet
from benchmarks.data.locks import exclusive
from benchmarks.data.readers import coco, npy, nuswide, voc
from benchmarks.data.readers import csv_table as table
from benchmarks.data.readers.class_names import COCO, NUS, VOC
from benchmarks.data.readers.files import read_classes
from methods.errors import UserError

if TYPE_CHECKING:
    from benchmarks.data.registry import DatasetSpec

Progress = Callable[[int, int], None]
Counts = tuple[int, int]


@dataclass(frozen=True)
class Request:
    """What a reader is asked for.

    Attributes:
        spec: the dataset and its options.
        root: its folder.
        index: folder of the indexes of large annotation files.
        progress: called with (done, total) while the embedded dataset is rendered.
        workers: processes that render it; None is one for each core.
    """

    spec: DatasetSpec
    root: Path
    index: Path
    progress: Progress | None = None
    workers: int | None = None


@dataclass(frozen=True)
class Contents:
    """What a reader found.

    Attributes:
        classes: names, in the order of the label columns.
        train: training images.
        test: test images.
        counts: numbers of training and test images to hold against the classic ones, whatever the
            options drop or keep.
        classic: those of the published copy; None where there is none.
    """

    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    counts: Counts = (0, 0)
    classic: Counts | None = None


@dataclass(frozen=True)
class Reader:
    """How a dataset is read.

    Attributes:
        read: opens the folder; None when the dataset is not there.
        options: the fields of `DatasetSpec` that it has beyond those of all datasets.
        expects: the files that make up a user's own dataset.
    """

    read: Callable[[Request], Contents | None]
    options: tuple[str, ...] = ()
    expects: str = ""


# -- the embedded dataset ----------------------------------------------------------------------


def _glyphscenes(seed: int) -> Callable[[Request], Contents]:
    """Reader of the rendering with a seed, which renders it first where it is absent."""

    def read(request: Request) -> Contents:
        from benchmarks.data.glyphscenes import (
            scenes as glyphscenes,  # its renderer is needed by nobody else
        )

        root = request.root
        folder = root / "glyphscenes"
        splits = [
            (folder / "annotations" / f"instances_{split}.json", folder / "images" / split)
            for split in ("train", "test")
        ]
        # The annotations are written last: where they are, nothing is left to do, and the folder
        # may be one that this user cannot write to.
        rendered = all(file.is_file() for file, _ in splits)
        if not rendered:
            root.mkdir(parents=True, exist_ok=True)
        with nullcontext() if rendered else exclusive(root / ".glyphscenes.lock"):
            try:
                glyphscenes.write(root, seed=seed, workers=request.workers, progress=request.progress)
            except ValueError as error:  # another version's or seed's files are there
                raise UserError(str(error)) from None
            except BrokenProcessPool:
                raise UserError(
                    f"{folder}: a rendering process died: out of memory, or the script that called "
                    "this does not have its work under `if __name__ == '__main__':`"
                ) from None
        return _instances(request, splits[0], splits[1], None)

    return read


# -- PASCAL VOC --------------------------------------------------------------------------------


def _voc(year: str, train: str, test: str, classic: Counts) -> Callable[[Request], Contents | None]:
    def read(request: Request) -> Contents | None:
        spec, root = request.spec, request.root
        asked = [
            f"{field} = {getattr(spec, field)!r}"
            for field, usual in (("labels", "lists"), ("difficult", "ignore"))
            if getattr(spec, field) != usual
        ]
        if npy.present(root) and not asked:
            folders = [f"VOCdevkit/VOC{year}/JPEGImages", "."]
            return _arrays(request, VOC, folders, classic, lambda path: path.stem, rows=True)
        tree = voc.find_tree(root, year)
        if tree is None and npy.present(root):
            raise UserError(
                f"{root}: {asked[0]} needs the official tree (VOCdevkit/VOC{year}), "
                "and there are only the arrays formatted_*.npy"
            )
        if tree is None:
            return None
        (train_images, listed), (test_images, test_listed) = (
            voc.read_split(
                tree, split, labels=spec.labels, difficult=spec.difficult, empty=spec.empty, order=spec.order
            )
            for split in (train, test)
        )
        return Contents(VOC, train_images, test_images, (listed, test_listed), classic)

    return read


# -- COCO and files like it --------------------------------------------------------------------


def _coco2014(request: Request) -> Contents | None:
    root, classic = request.root, (82081, 40137)
    if npy.present(root):
        return _arrays(request, COCO, ["."], classic, _coco_id)
    files = [
        (root / "annotations" / f"instances_{split}.json", root / split) for split in ("train2014", "val2014")
    ]
    if not all(file.is_file() for file, _ in files):
        return None
    return _instances(request, files[0], files[1], classic)


def _coco_id(path: PurePosixPath) -> str:
    """COCO's image id out of `train2014/COCO_train2014_000000000009.jpg`: "9"."""
    digits = path.stem.rsplit("_", 1)[-1]
    if not digits.isdecimal():
        raise UserError(f"{str(path)!r} does not end in COCO's image number")
    return str(int(digits))


def _coco(request: Request) -> Contents | None:
    spec, root = request.spec, request.root
    names = [getattr(spec, split) or f"annotations/instances_{split}.json" for split in ("train", "test")]
    files = [root / name for name in names]
    if not (spec.train or spec.test) and not any(file.is_file() for file in files):
        return None
    train, test = ((file, _coco_folders(request, file)) for file in files)
    return _instances(request, train, test, None)


def _coco_folders(request: Request, file: Path) -> list[Path]:
    """Where the images of `instances_<split>.json` may lie, in order of preference."""
    if request.spec.images:
        return [request.root / request.spec.images]
    split = file.stem.removeprefix("instances_")
    return [request.root / name for name in (f"images/{split}", split, "images", ".")]


def _instances(
    request: Request,
    train: tuple[Path, Path | Sequence[Path]],
    test: tuple[Path, Path | Sequence[Path]],
    classic: Counts | None,
) -> Contents:
    spec = request.spec
    classes, train_images, test_images = coco.read_pair(
        train, test, empty=spec.empty, order=spec.order, index=request.index
    )
    counts = _labelled(train_images, test_images)
    return Contents(classes, train_images, test_images, counts, classic)


# -- NUS-WIDE ----------------------------------------------------------------------------------


def _nuswide(request: Request) -> Contents | None:
    root, images = request.root, request.spec.images
    if npy.present(root):
        folders = [images] if images else ["Flickr", "."]
        return _arrays(request, NUS, folders, (150000, 60260))
    tree = nuswide.find_tree(root)
    if tree is None:
        return None
    places = [root / images] if images else nuswide.image_folders(root, tree)
    (train, listed), (test, test_listed) = (
        nuswide.read_split(tree, split, places, empty=request.spec.empty) for split in ("Train", "Test")
    )
    return Contents(NUS, train, test, (listed, test_listed), (161789, 107859))


# -- users' own --------------------------------------------------------------------------------


def _npy(request: Request) -> Contents | None:
    root, images = request.root, request.spec.images
    if not npy.present(root):
        return None
    classes = read_classes(root / "classes.txt")
    return _arrays(request, classes, [images] if images else ["images", "."], None)


def _csv(request: Request) -> Contents | None:
    spec, root = request.spec, request.root
    files = table.find_files(root, spec.train, spec.test)
    if files is None:
        return None
    folders = [root / spec.images] if spec.images else []
    classes, train, test = table.read(files, folders, empty=spec.empty)
    return Contents(classes, train, test)


def _arrays(
    request: Request,
    classes: tuple[str, ...],
    folders: list[str],
    classic: Counts | None,
    name_of: Callable[[PurePosixPath], str] = str,
    *,
    rows: bool = False,
) -> Contents:
    """The four arrays; their labelled images are counted, or all their rows."""
    (train, listed), (test, test_listed) = (
        npy.read_split(request.root, split, classes, folders, name_of, empty=request.spec.empty)
        for split in ("train", "val")
    )
    counts = (listed, test_listed) if rows else _labelled(train, test)
    return Contents(classes, train, test, counts, classic)


def _labelled(train: ImageSet, test: ImageSet) -> Counts:
    found = [int(images.labels.any(axis=1).sum()) for images in (train, test)]
    return found[0], found[1]


READERS: dict[str, Reader] = {
    "glyphscenes": Reader(_glyphscenes(0)),
    # Other scenes of the same kind: hyper-parameters are chosen here, never on the test images.
    "glyphscenes-dev": Reader(_glyphscenes(99)),
    "voc2007": Reader(
        _voc("2007", "trainval", "test", (5011, 4952)), ("difficult", "empty", "labels", "order")
    ),
    "voc2012": Reader(_voc("2012", "train", "val", (5717, 5823)), ("difficult", "empty", "labels", "order")),
    "coco2014": Reader(_coco2014, ("empty", "order")),
    "nuswide": Reader(_nuswide, ("empty", "images")),
    "coco": Reader(
        _coco,
        ("empty", "order", "train", "test", "images"),
        "annotations/instances_train.json and annotations/instances_test.json, or the files named "
        "by train and test, and the images in images/train and images/test, in images/, or in the "
        "folder named by images",
    ),
    "csv": Reader(
        _csv,
        ("empty", "train", "test", "images"),
        "train.csv and test.csv, or labels.csv with a column split, or the files named by train "
        "and test, with the header path,labels (classes separated by ;) or path,<class>,<class>,…",
    ),
    "npy": Reader(
        _npy,
        ("empty", "images"),
        "formatted_{train,val}_{images,labels}.npy and classes.txt (one class a line), and the "
        "images in images/ or in the folder named by images",
    ),
}
