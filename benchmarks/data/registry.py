"""Datasets by name: which images and labels, looked at how, and where their files belong."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data.archives import catalogue as archives
from benchmarks.data.dataset import Dataset
from benchmarks.data.readers.base import READERS, Contents, Progress, Request
from benchmarks.data.readers.class_names import prompt_names
from benchmarks.data.splits.rules import check_rule
from methods.errors import UserError, check_choice, nearest

CHOICES = {
    "difficult": ("ignore", "positive"),
    "empty": ("drop", "keep"),
    "labels": ("lists", "xml"),
    "order": ("published", "file"),
}
OPTIONS = (*CHOICES, "train", "test", "images")
"""Fields of `DatasetSpec` that only some readers have."""


@dataclass(frozen=True)
class DatasetSpec:
    """Which dataset, and how it is looked at. The defaults are the published protocol.

    Attributes:
        name: one of `available()`; `coco`, `csv` and `npy` read a user's own files.
        root: folder that holds it; None is `<data root>/<name>`. For glyphscenes: the folder in
            which `glyphscenes/` lies or is rendered.
        allow_counts: accept a copy whose numbers of images are not the classic ones.
        classes: restrict the label set to these classes; empty for all. Images that are left
            without a label are dropped, unless `empty` keeps them.
        alias: the name shown in tables and kept in the run identity; by default the name.
        skip_bad: leave images out that cannot be decoded, instead of ending with an error.
        split: how labelled images are drawn: "published", "stratified", or the file of a list.
        difficult: VOC: "ignore" objects marked difficult, or count them as "positive".
        empty: "drop" or "keep" images without a label.
        labels: VOC: "lists" (`ImageSets/Main/<class>_<split>.txt`) or "xml" (`Annotations`).
        order: VOC and COCO: "published" sorts images as the published splits expect it, "file"
            keeps them as the files list them.
        prompts: (class, how it is written in prompts) where that is not the class's name.
        train: coco and csv: file of the training images, relative to the root.
        test: the same of the test images.
        images: coco, csv, npy and nuswide: folder that paths of images are relative to, itself
            relative to the root.
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

    def __post_init__(self) -> None:
        if self.name not in READERS:
            raise UserError(f"no dataset {self.name!r}{nearest(self.name, available())}")
        if not self.alias:
            object.__setattr__(self, "alias", self.name)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.alias):
            raise UserError(f"dataset alias {self.alias!r} names folders: use letters, digits, '.', '_', '-'")
        for field, choices in CHOICES.items():
            check_choice(f"dataset {self.name!r}: {field}", getattr(self, field), choices)
        check_rule(self.split)
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        for field in OPTIONS:
            if getattr(self, field) != usual[field] and field not in READERS[self.name].options:
                have = [name for name in available() if field in READERS[name].options]
                raise UserError(f"dataset {self.name!r} has no option {field!r}; {', '.join(have)} have it")


def available() -> list[str]:
    """Names of the datasets, sorted."""
    return sorted(READERS)


def open_dataset(
    spec: DatasetSpec,
    data_root: Path,
    *,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Dataset:
    """Read a dataset's lists and labels; no image is decoded.

    What a large annotation file says is kept in `<data root>/cache/index/`.

    Args:
        spec: which one.
        data_root: folder in which datasets lie, one folder each.
        progress: called with (done, total) while the embedded dataset is rendered.
        workers: processes that render the embedded dataset; None is one for each core.

    Raises:
        UserError: it is absent (the message holds the commands that bring it), its files are
            wrong, its counts are not the classic ones, or a class of `spec.classes` or
            `spec.prompts` is unknown.
    """
    reader, root = READERS[spec.name], _root(spec, data_root)
    found = reader.read(Request(spec, root, data_root / "cache" / "index", progress, workers))
    if found is None:
        how = (
            f"expected there: {reader.expects}"
            if reader.expects
            else f"get it with: {archives.commands(spec.name, root)}"
        )
        raise UserError(f"dataset {spec.name!r} is not in {root}; {how}")
    notes = _check_counts(spec, found, root)
    prompts = prompt_names(found.classes, spec.prompts)
    dataset = Dataset(spec.alias, found.classes, prompts, found.train, found.test, notes)
    if not spec.classes:
        return dataset
    return dataset.restrict(spec.classes, keep_empty=spec.empty == "keep")


def renders(spec: DatasetSpec, data_root: Path) -> bool:
    """Whether to open it is to render it first: the embedded dataset, before its first use."""
    annotations = _root(spec, data_root) / "glyphscenes" / "annotations"
    return spec.name.startswith("glyphscenes") and not all(
        (annotations / f"instances_{split}.json").is_file() for split in ("train", "test")
    )


def _root(spec: DatasetSpec, data_root: Path) -> Path:
    if spec.root:
        return Path(spec.root).expanduser()
    return data_root if spec.name == "glyphscenes" else data_root / spec.name


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
            text + "; complete the copy, or accept it with --allow-counts "
            "(allow_counts = true in a grid); its numbers are then not comparable with published "
            "ones"
        )
    return (text + "; accepted",)
