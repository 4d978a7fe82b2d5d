"""Splits as files: what was labelled, by name, with its hash and the rule that drew it.

`<data root>/splits/<alias>-<first 12 digits of the dataset's digest>/<rule>-p0.05-seed1.json`, one
for each dataset, rule, ratio and seed. A run compares what it draws with the file that an earlier
one left, so that no change of NumPy or of this code labels other images unnoticed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.dataset import Dataset
from benchmarks.data.registry import DatasetSpec
from benchmarks.data.splits.rules import (
    RULES,
    draw,
    known_digest,
    labelled_count,
    labelled_indices,
    split_digest,
)
from methods.errors import UserError, nearest
from results.files import atomic_write_json

FOLDER = "splits"
"""Name of the folder of split files under the data root."""
FORMAT = 1
_NAME = re.compile(r"(published|stratified)-p[0-9.e-]+-seed\d+\.json")


@dataclass(frozen=True, eq=False)
class SplitRecord:
    """The content of a split file.

    Attributes:
        dataset: the dataset's alias.
        dataset_digest: SHA-256 of names and labels (`Dataset.digest`).
        reader: the fields of the `DatasetSpec` that are not the default, to open it again.
        skipped: ids of the images that were left out because they cannot be read, by "train" and
            "test".
        n_train: number of training images.
        rule: "published" or "stratified".
        ratio: labelled share p.
        seed: seed of the split.
        numpy: version that drew it.
        labelled: (n_l,) int64 positions in their order.
        ids: n_l names of these images.
        sha256: `split_digest` of the positions.
    """

    dataset: str
    dataset_digest: str
    reader: dict[str, Any]
    skipped: dict[str, tuple[str, ...]]
    n_train: int
    rule: str
    ratio: float
    seed: int
    numpy: str
    labelled: NDArray[np.int64]
    ids: tuple[str, ...]
    sha256: str

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        spec: DatasetSpec,
        ratio: float,
        seed: int,
        labelled: NDArray[np.int64],
        whole: Dataset | None = None,
    ) -> SplitRecord:
        """The record of a subset that `spec.split` has drawn.

        Args:
            dataset: what it was drawn from.
            spec: how the dataset was opened.
            ratio: labelled share.
            seed: seed of the split.
            labelled: (n_l,) positions in the training images.
            whole: the dataset as it was opened, if images were left out since.
        """
        return cls(
            dataset.name,
            dataset.digest,
            _reader(spec),
            _skipped(dataset, whole or dataset),
            len(dataset.train),
            spec.split,
            float(ratio),
            int(seed),
            np.__version__,
            labelled,
            tuple(dataset.train.ids[k] for k in labelled),
            split_digest(labelled),
        )

    @property
    def name(self) -> str:
        """The file's name. A ratio is written in full: two ratios never share a file."""
        return f"{self.rule}-p{self.ratio!r}-seed{self.seed}.json"

    def path(self, folder: Path) -> Path:
        """Where the file lies under the folder of all split files."""
        return folder / f"{self.dataset}-{self.dataset_digest[:12]}" / self.name

    def write(self, path: Path) -> None:
        """Write the file atomically, with the folders it needs.

        Raises:
            OSError: the place cannot be written to.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["labelled"] = self.labelled.tolist()
        atomic_write_json(path, {"format": FORMAT, **values})

    @property
    def spec(self) -> DatasetSpec:
        """The dataset and how it was looked at.

        Raises:
            UserError: a field that `DatasetSpec` does not have, or a value that it refuses.
        """
        kinds = {field.name: type(field.default) for field in dataclasses.fields(DatasetSpec)}
        kinds |= {"name": str, "root": str}
        values = {key: _tuples(value) for key, value in self.reader.items()}
        for key, value in values.items():
            if not isinstance(value, kinds.get(key, ())) or not _is_text(value) or key == "split":
                raise UserError(f"'reader' has {key!r} = {value!r}, which no dataset has here")
        if "name" not in values:
            raise UserError("'reader' has no 'name'")
        return DatasetSpec(**values, split=self.rule)


def _reader(spec: DatasetSpec) -> dict[str, Any]:
    fields = {field.name: field.default for field in dataclasses.fields(spec)}
    values = {name: getattr(spec, name) for name in fields if name != "split"}
    if spec.root is not None:  # whoever verifies may stand in another folder
        values["root"] = os.path.abspath(os.path.expanduser(spec.root))
    return {name: value for name, value in values.items() if value != fields[name]}


def _skipped(dataset: Dataset, whole: Dataset) -> dict[str, tuple[str, ...]]:
    found = {}
    for split in ("train", "test"):
        part, full = getattr(dataset, split), getattr(whole, split)
        if len(part) != len(full):
            left = set(part.ids)
            found[split] = tuple(name for name in full.ids if name not in left)
    return found


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value


def _is_text(value: Any) -> bool:
    """Whether a field is a text or a flag, or holds nothing but texts."""
    if isinstance(value, tuple):
        return all(_is_text(entry) and not isinstance(entry, bool) for entry in value)
    return isinstance(value, str | bool)


_KINDS: dict[str, type | tuple[type, ...]] = {
    "dataset": str,
    "dataset_digest": str,
    "reader": dict,
    "skipped": dict,
    "n_train": int,
    "rule": str,
    "ratio": (int, float),
    "seed": int,
    "numpy": str,
    "labelled": list,
    "ids": list,
    "sha256": str,
}


def load(path: Path) -> SplitRecord:
    """Read a split file; what it says is not checked beyond its form and its own hash.

    Raises:
        UserError: it cannot be read, is not a split file, or its hash is not that of its positions.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"split file {path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"split file {path}: not valid JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"split file {path}: no split file of format {FORMAT} ('format')")
    for key, kind in _KINDS.items():
        if not isinstance(content.get(key), kind) or isinstance(content[key], bool):
            raise UserError(f"split file {path}: {key!r} is missing or of the wrong kind")
    for split, names in content["skipped"].items():
        texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if split not in ("train", "test") or not texts:
            raise UserError(f"split file {path}: 'skipped' holds {split!r}: {names!r}")
    labelled, ids, total = content["labelled"], content["ids"], content["n_train"]
    if content["rule"] not in RULES:
        raise UserError(f"split file {path}: no rule {content['rule']!r}{nearest(content['rule'], RULES)}")
    if not all(type(k) is int and 0 <= k < total for k in labelled):
        raise UserError(f"split file {path}: 'labelled' holds a position outside 0 … {total - 1}")
    if len(set(labelled)) != len(labelled) or len(ids) != len(labelled):
        raise UserError(
            f"split file {path}: {len(labelled)} positions ({len(set(labelled))} different) and "
            f"{len(ids)} ids"
        )
    positions = np.array(labelled, dtype=np.int64)
    if split_digest(positions) != content["sha256"]:
        raise UserError(f"split file {path}: 'labelled' was changed: its SHA-256 is not 'sha256'")
    values = {key: _tuples(content[key]) for key in _KINDS}
    return SplitRecord(**values | {"labelled": positions, "ratio": float(content["ratio"])})


def keep(folder: Path, drawn: SplitRecord) -> str:
    """Leave a split for later runs, or compare it with what an earlier one left.

    Args:
        folder: folder of all split files.
        drawn: the split as it is drawn now.

    Returns:
        "written", "present", or the reason why the file cannot be written: a shared data folder
        may well be read-only.

    Raises:
        UserError: a file is there and differs, or is damaged.
    """
    path = drawn.path(folder)
    if path.is_file():
        try:
            found = load(path)
        except UserError as error:
            raise UserError(f"{error}; remove it, and the split is written anew") from None
        change = _difference(found, drawn)
        if change:
            raise UserError(
                f"split file {path} differs from what the rule {drawn.rule!r} draws now: {change}; "
                f"it was written with NumPy {found.numpy}, this is {np.__version__}: use that one, "
                "or remove the file to label other images (finished runs keep their own)"
            )
        return "present"
    try:
        drawn.write(path)
    except OSError as error:
        return error.strerror or str(error)
    return "written"


def _difference(found: SplitRecord, drawn: SplitRecord) -> str:
    """What a file says otherwise, in a few words; empty for nothing."""
    for name in ("dataset_digest", "n_train", "rule", "ratio", "seed"):
        before, now = getattr(found, name), getattr(drawn, name)
        if before != now:
            return f"{name} is {before} in the file and {now} now"
    if found.sha256 != drawn.sha256:
        if len(found.labelled) != len(drawn.labelled):
            return f"{len(found.labelled)} images are labelled there, {len(drawn.labelled)} now"
        k = int(np.flatnonzero(found.labelled != drawn.labelled)[0])
        return f"labelled image {k + 1} is {found.ids[k]!r} in the file and {drawn.ids[k]!r} now"
    if found.ids != drawn.ids:
        k = next(k for k, (a, b) in enumerate(zip(found.ids, drawn.ids, strict=True)) if a != b)
        return f"labelled image {k + 1} is called {found.ids[k]!r} there and {drawn.ids[k]!r} here"
    return ""


@dataclass(frozen=True)
class Finding:
    """What the check of a split file came to.

    Attributes:
        path: the file.
        text: what it is, and what was compared.
        problem: what differs or could not be checked although it must be; empty when all is right.
    """

    path: Path
    text: str
    problem: str = ""


class Verifier:
    """Draws the splits of files again and compares; opens each dataset once.

    Args:
        opener: opens a dataset without its images' pixels; a `UserError` says that it is not here.
    """

    def __init__(self, opener: Callable[[DatasetSpec], Dataset]) -> None:
        self.opener = opener
        self.opened: dict[str, Dataset | str] = {}

    def check(self, path: Path) -> Finding:
        """Check one file.

        Compared are its form and hash, its name, the subset that its rule draws, the published
        subset where that is on record, and the names of the images. For a published split the last
        one needs the dataset and is left out without it; a stratified split cannot be drawn
        without the labels, and that is a problem.
        """
        try:
            record = load(path)
        except UserError as error:
            return Finding(path, "", str(error).removeprefix(f"split file {path}: "))
        text = (
            f"{record.dataset}, {record.rule}, ratio {record.ratio:g}, seed {record.seed}: "
            f"{len(record.labelled):,} of {record.n_train:,}"
        )
        if _NAME.fullmatch(path.name) and path.name != record.name:
            return Finding(path, text, f"by its content it should be called {record.name}")
        known = known_digest(record.n_train, record.ratio, record.seed)
        if record.rule == "published" and known is not None:
            if record.sha256 != known:
                return Finding(path, text, "not the published split")
            text += ", equal to the published split"
        try:
            count = labelled_count(record.n_train, record.ratio, record.seed)
            if count != len(record.labelled):
                return Finding(path, text, f"that ratio is {count:,} images")
            return self._drawn_again(path, record, text)
        except UserError as error:
            return Finding(path, text, str(error))

    def _drawn_again(self, path: Path, record: SplitRecord, text: str) -> Finding:
        dataset = self._open(record)
        if isinstance(dataset, str):
            if record.rule == "stratified":
                return Finding(path, text, f"it cannot be drawn again without labels: {dataset}")
            labelled, _ = labelled_indices(record.n_train, record.ratio, record.seed)
            if split_digest(labelled) != record.sha256:
                return Finding(path, text, f"NumPy {np.__version__} draws another subset")
            return Finding(path, f"{text}; names not compared: {dataset}")
        if dataset.digest != record.dataset_digest:
            return Finding(
                path,
                text,
                f"made for another dataset (digest {record.dataset_digest[:12]}) than "
                f"the one that is here ({dataset.digest[:12]}, {len(dataset.train):,} training "
                "images)",
            )
        labelled = draw(dataset, record.rule, record.ratio, record.seed).labelled
        now = SplitRecord.of(dataset, record.spec, record.ratio, record.seed, labelled)
        return Finding(path, text, _difference(record, now))

    def _open(self, record: SplitRecord) -> Dataset | str:
        """The dataset of a file, or why there is none."""
        key = json.dumps([record.dataset, record.reader, record.skipped], sort_keys=True)
        if key not in self.opened:
            try:
                dataset = self.opener(record.spec)
                for split, names in record.skipped.items():
                    dataset = dataset.without(names, split=split)
                self.opened[key] = dataset
            except UserError as error:
                self.opened[key] = str(error).splitlines()[0]
        return self.opened[key]
