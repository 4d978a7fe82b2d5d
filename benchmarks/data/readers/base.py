"""What a reader is given and what it returns; the modules beside this one each read one layout.

Where a folder holds the four arrays of `benchmarks.data.readers.npy` and another layout besides, the arrays
are read, because the published splits index them; a root without the arrays reads the other. VOC's options
`labels = "xml"` and `difficult = "positive"` need information that the arrays do not have, and therefore the
official tree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data.dataset import ImageSet

Progress = Callable[[int, int], None]
Counts = tuple[int, int]


@dataclass(frozen=True)
class Request:
    """The folder to read and the options of the dataset; the defaults are the published protocol.

    Attributes:
        root: folder of the dataset.
        index: folder of the indexes of large annotation files.
        difficult: VOC: "ignore" objects marked difficult, or count them as "positive".
        empty: "drop" or "keep" images without a label.
        labels: VOC: "lists" (`ImageSets/Main/<class>_<split>.txt`) or "xml" (`Annotations`).
        order: VOC and COCO: "published" sorts images as the published splits expect it, "file" keeps the
            order of the files.
        train: coco and csv: file of the training images, relative to the root; empty for the usual name.
        test: coco and csv: file of the test images, in the same way.
        images: coco, csv, npy and nuswide: folder of the images, relative to the root; empty for the usual
            ones.
        train_images: coco: folder of the training images only, relative to the root or to their file.
        test_images: coco: folder of the test images only, likewise.
        path_column: csv: the column of the image's path; empty for `path`.
        labels_column: csv: the column of the classes, the others being ignored; empty for `labels`.
        columns: csv: the columns that are classes, the others being ignored; empty for all.
        separator: csv: between the classes of a cell.
        ignore: csv: columns that are no classes.
        nothing: csv: the class that says that there is none, such as "No Finding".
        suffix: csv: what paths lack, such as ".jpg".
        delimiter: csv: between the columns; "tab" is a tab.
        test_share: csv: share of the images that are drawn for the test.
        test_seed: csv: seed of that draw.
        train_list: csv: file that lists the training images, relative to the root.
        test_list: csv: file that lists the test images.
        duplicates: csv: "refuse" lines that name one image, or "merge" their classes.
        progress: called with (done, total) while GlyphScenes is rendered.
        workers: processes that render it; None is one for each core.
    """

    root: Path
    index: Path
    difficult: str = "ignore"
    empty: str = "drop"
    labels: str = "lists"
    order: str = "published"
    train: str = ""
    test: str = ""
    images: str = ""
    train_images: str = ""
    test_images: str = ""
    path_column: str = ""
    labels_column: str = ""
    columns: tuple[str, ...] = ()
    separator: str = ";"
    ignore: tuple[str, ...] = ()
    nothing: str = ""
    suffix: str = ""
    delimiter: str = ","
    test_share: float = 0.0
    test_seed: int = 1
    train_list: str = ""
    test_list: str = ""
    duplicates: str = "refuse"
    progress: Progress | None = None
    workers: int | None = None


@dataclass(frozen=True)
class Contents:
    """The images and labels that a reader found.

    Attributes:
        classes: K names, in the order of the label columns.
        train: training images.
        test: test images.
        counts: numbers of training and test images to compare with `classic`; options that drop or keep
            images do not change them.
        classic: numbers of the published copy; None where there is none.
        notes: one-line remarks for the user.
    """

    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    counts: Counts = (0, 0)
    classic: Counts | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reader:
    """A way to read a dataset.

    Attributes:
        read: reads the folder; returns None when the dataset is not there.
        options: the options of `Request` that it supports.
        expects: the files that make up a user's own dataset; empty for datasets with official archives.
    """

    read: Callable[[Request], Contents | None]
    options: tuple[str, ...] = ()
    expects: str = ""


def labelled_counts(train: ImageSet, test: ImageSet) -> Counts:
    """Numbers of training and of test images that have a label."""
    return int(train.labels.any(axis=1).sum()), int(test.labels.any(axis=1).sum())
