"""Dataset specifications, the table of readers, and how to open a dataset by name."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.data.archives import catalogue as archives
from benchmarks.data.dataset import Dataset
from benchmarks.data.glyphscenes.classes import SEEDS
from benchmarks.data.glyphscenes.classes import class_names as glyphscenes_names
from benchmarks.data.readers import coco, csv_file, csv_table, glyphscenes, npy, nuswide, rules, voc
from benchmarks.data.readers.base import Contents, Progress, Reader, Request
from benchmarks.data.readers.class_names import COCO, NUS, VOC, prompt_names
from benchmarks.data.readers.index import read_only
from benchmarks.data.splits.rules import check_rule
from methods.errors import UserError, check_choice, nearest
from methods.fields import Wording, build

CSV_OPTIONS = (
    *(field.name for field in dataclasses.fields(csv_file.Form)),
    "test_share",
    "test_seed",
    "train_list",
    "test_list",
    "duplicates",
)
"""How a table is written, and what says which images are for the test."""

READERS: dict[str, Reader] = {
    "glyphscenes": Reader(glyphscenes.reader(SEEDS["glyphscenes"])),
    # Other scenes of the same kind: hyper-parameters are chosen here, never on the test images.
    "glyphscenes-dev": Reader(glyphscenes.reader(SEEDS["glyphscenes-dev"])),
    "voc2007": Reader(
        voc.reader("2007", "trainval", "test", (5011, 4952)), ("difficult", "empty", "labels", "order")
    ),
    "voc2012": Reader(
        voc.reader("2012", "train", "val", (5717, 5823)), ("difficult", "empty", "labels", "order")
    ),
    "coco2014": Reader(coco.read_coco2014, ("empty", "order")),
    "nuswide": Reader(nuswide.read, ("empty", "images")),
    "coco": Reader(
        coco.read,
        ("empty", "order", "train", "test", "images", "train_images", "test_images"),
        "annotations/instances_train.json and annotations/instances_test.json, or the files named "
        "by train and test, and the images in images/train and images/test, in images/, beside the JSON or "
        "in data/ beside it, or in the folder named by images (or by train_images and test_images)",
    ),
    "csv": Reader(
        csv_table.read,
        ("empty", "train", "test", "images", *CSV_OPTIONS),
        "train.csv and test.csv, or labels.csv with a column split, or the files named by train "
        "and test, with the header path,labels (classes separated by ;) or path,<class>,<class>,…",
    ),
    "npy": Reader(
        npy.read,
        ("empty", "images"),
        "formatted_{train,val}_{images,labels}.npy and classes.txt (one class a line), and the "
        "images in images/ or in the folder named by images",
    ),
}
"""The reader of each dataset. To add one, write a module in `readers/` and a row here."""

CHOICES = {
    "difficult": ("ignore", "positive"),
    "empty": ("drop", "keep"),
    "labels": ("lists", "xml"),
    "order": ("published", "file"),
}
OPTIONS = (*CHOICES, "train", "test", "images", "train_images", "test_images", *CSV_OPTIONS)
"""Options of `DatasetSpec` and of `Request` that only some readers support."""


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset and its options. The defaults are the published protocol.

    Attributes:
        name: one of `available()`; `coco`, `csv` and `npy` read a user's own files.
        root: its folder; None is `<data root>/<name>`. For glyphscenes: the folder in which `glyphscenes/`
            is, or will be rendered.
        allow_counts: accept a copy whose numbers of images are not the classic ones.
        classes: restrict the label set to these classes; empty for all. Images left without a label are
            dropped, unless `empty` keeps them.
        alias: the name shown in tables and kept in the run identity; by default the name.
        skip_bad: leave out images that cannot be decoded, instead of ending with an error.
        split: how labelled images are drawn: "published", "stratified", or the file of a list.
        difficult: VOC: "ignore" objects marked difficult, or count them as "positive".
        empty: "drop" or "keep" images without a label.
        labels: VOC: "lists" (`ImageSets/Main/<class>_<split>.txt`) or "xml" (`Annotations`).
        order: VOC and COCO: "published" sorts images as the published splits expect it, "file"
            keeps them as the files list them.
        prompts: (class, its text in prompts) where that is not the class's name.
        train: coco and csv: file of the training images, relative to the root.
        test: coco and csv: file of the test images, relative to the root.
        images: coco, csv, npy and nuswide: folder of the images, relative to the root.
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

    Raises:
        UserError: an unknown name, an alias that is no folder name, a value that is not among the choices, or
            an option that the dataset's reader does not support.
    """

    name: str
    root: str | None = None
    allow_counts: bool = False
    classes: tuple[str, ...] = ()
    alias: str = ""
    skip_bad: bool = False
    split: str = "published"
    difficult: str = "ignore"
    empty: str = "drop"
    labels: str = "lists"
    order: str = "published"
    prompts: tuple[tuple[str, str], ...] = ()
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

    def __post_init__(self) -> None:
        if self.name not in READERS:
            raise UserError(f"no dataset {self.name!r}{nearest(self.name, available())}")
        if not self.alias:
            object.__setattr__(self, "alias", self.name)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.alias):
            raise UserError(f"dataset alias {self.alias!r} names folders: use letters, digits, '.', '_', '-'")
        for field, choices in CHOICES.items():
            check_choice(f"dataset {self.name!r}: {field}", getattr(self, field), choices)
        check_choice(f"dataset {self.name!r}: duplicates", self.duplicates, ("refuse", "merge"))
        if not 0 <= self.test_share < 1:
            raise UserError(f"dataset {self.name!r}: test_share is {self.test_share}; it must be in [0, 1)")
        if not 0 <= self.test_seed < 2**32:
            raise UserError(f"dataset {self.name!r}: test_seed is {self.test_seed}; it must be in [0, 2**32)")
        if not self.separator or (len(self.delimiter) != 1 and self.delimiter not in ("tab", "\\t")):
            raise UserError(
                f"dataset {self.name!r}: separator and delimiter are {self.separator!r} and "
                f"{self.delimiter!r}; each must be a character"
            )
        check_rule(self.split)
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        for field in OPTIONS:
            if getattr(self, field) != usual[field] and field not in READERS[self.name].options:
                have = [name for name in available() if field in READERS[name].options]
                raise UserError(f"dataset {self.name!r} has no option {field!r}; {', '.join(have)} have it")

    def folder(self, data_root: Path) -> Path:
        """The folder that the reader gets."""
        if self.root:
            return Path(self.root).expanduser()
        return data_root if self.name == "glyphscenes" else data_root / self.name

    def table(self) -> dict[str, Any]:
        """The fields that differ from their defaults, except `split`, for a split file.

        `root` is made absolute, because `splits verify` may run in another folder.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        values = {name: getattr(self, name) for name in defaults if name != "split"}
        if self.root is not None:
            values["root"] = os.path.abspath(os.path.expanduser(self.root))
        return {name: value for name, value in values.items() if value != defaults[name]}

    @classmethod
    def from_table(cls, table: Mapping[str, Any], split: str) -> DatasetSpec:
        """The dataset of `table`, with lists or tuples, as `table()` wrote it.

        Args:
            table: the value `reader` of a split file.
            split: the rule of the split file.

        Raises:
            UserError: an unknown field, or a value that the field refuses.
        """
        problem = "'reader' has {name!r} = {value!r}, which no dataset has here"
        wording = Wording(unknown=problem, wrong=problem, missing="'reader' has no {name!r}")
        if "split" in table:
            raise UserError(problem.format(name="split", value=table["split"]))
        return build(cls, {**table, "split": split}, "", wording)


class AbsentError(UserError):
    """A dataset is not where it is looked for."""


_CLASSES = {
    "voc2007": len(VOC),
    "voc2012": len(VOC),
    "coco2014": len(COCO),
    "nuswide": len(NUS),
    "glyphscenes": len(glyphscenes_names()),
    "glyphscenes-dev": len(glyphscenes_names()),
}
"""Numbers of classes that are known where the dataset is absent."""


def number_of_classes(spec: DatasetSpec) -> int | None:
    """The number of classes of a dataset, which need not be here; None where only its files say it."""
    return len(spec.classes) or _CLASSES.get(spec.name)


def available() -> list[str]:
    """Names of the datasets, sorted."""
    return sorted(READERS)


def open_dataset(
    spec: DatasetSpec,
    data_root: Path,
    *,
    progress: Progress | None = None,
    workers: int | None = None,
    make: bool = True,
) -> Dataset:
    """Read a dataset's lists and labels; no image is decoded.

    The content of a large annotation file is kept in `<data root>/cache/index/`.

    Args:
        spec: the dataset.
        data_root: folder of the datasets, one folder each.
        progress: called with (done, total) while the embedded dataset is rendered.
        workers: processes that render the embedded dataset; None is one for each core.
        make: whether the embedded dataset is rendered where it is absent, and indexes are written.

    Raises:
        AbsentError: it is absent (the message has the commands to download it).
        UserError: its files are wrong, its counts are not the classic ones, or a class of `spec.classes` or
            `spec.prompts` is unknown.
    """
    reader, root = READERS[spec.name], spec.folder(data_root)
    options = {option: getattr(spec, option) for option in OPTIONS}
    index = data_root / "cache" / "index"
    if not make and renders(spec, data_root):
        raise AbsentError(
            f"dataset {spec.name!r} is not in {root}; `prepare {spec.name}` or a run renders it"
        )
    with nullcontext() if make else read_only():
        found = reader.read(Request(root, index, **options, progress=progress, workers=workers))
    if found is None:
        how = (
            f"expected there: {reader.expects}"
            if reader.expects
            else f"get it with: {archives.commands(spec.name, root)}"
        )
        raise AbsentError(f"dataset {spec.name!r} is not in {root}; {how}")
    rules.check(found, root)
    notes = (*found.notes, *_check_counts(spec, found, root))
    prompts = prompt_names(found.classes, spec.prompts)
    dataset = Dataset(spec.alias, found.classes, prompts, found.train, found.test, notes)
    if not spec.classes:
        return dataset
    return dataset.restrict(spec.classes, keep_empty=spec.empty == "keep")


def renders(spec: DatasetSpec, data_root: Path) -> bool:
    """Whether opening the dataset renders it first: the embedded one, before its first use."""
    annotations = spec.folder(data_root) / "glyphscenes" / "annotations"
    return spec.name.startswith("glyphscenes") and not all(
        (annotations / f"instances_{split}.json").is_file() for split in ("train", "test")
    )


def _check_counts(spec: DatasetSpec, found: Contents, root: Path) -> tuple[str, ...]:
    counts, classic = found.counts, found.classic
    if classic is None or counts == classic:
        return ()
    text = (
        f"{root}: {counts[0]:,} training and {counts[1]:,} test images, where the classic "
        f"{spec.name} has {classic[0]:,} and {classic[1]:,}"
    )
    if not spec.allow_counts:
        raise UserError(
            text + "; complete the copy, or accept it with `prepare --allow-counts` "
            "(allow_counts = true in a grid); its numbers are then not comparable with published "
            "ones"
        )
    return (text + "; accepted",)
