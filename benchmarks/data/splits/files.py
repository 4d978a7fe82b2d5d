"""Splits as files: the labelled images by position and name, with their hash and rule.

There is one file for each dataset, rule, ratio and seed:
`<data root>/splits/<alias>-<first 12 digits of the dataset's digest>/<rule>-p0.05-seed1.json`. A run
compares its split with the file of an earlier run, so that no change of NumPy or of this code labels other
images unnoticed.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.dataset import Dataset
from benchmarks.data.splits.rules import (
    SPLIT_RULES,
    draw,
    is_rule,
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
_NAME = re.compile(r"(published|stratified|\d+-per-class)-p[0-9.e-]+-seed\d+\.json")


@dataclass(frozen=True, eq=False)
class SplitRecord:
    """The content of a split file.

    Attributes:
        dataset: the dataset's alias.
        dataset_digest: SHA-256 of names and labels (`Dataset.digest`).
        reader: how to open the dataset again, see `DatasetSpec.table`.
        skipped: ids of the images that were left out because they cannot be read, by "train" and "test".
        n_train: number of training images.
        rule: "published", "stratified" or "N-per-class".
        ratio: labelled share p.
        seed: seed of the split.
        numpy: version of NumPy that drew it.
        labelled: (n_l,) int64 positions in the training images, in the order drawn.
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
        reader: Mapping[str, Any],
        rule: str,
        ratio: float,
        seed: int,
        labelled: NDArray[np.int64],
        whole: Dataset | None = None,
    ) -> SplitRecord:
        """The record of a labelled subset.

        Args:
            dataset: the dataset that it was drawn from.
            reader: how the dataset was opened, see `DatasetSpec.table`.
            rule: the rule that drew it.
            ratio: labelled share.
            seed: seed of the split.
            labelled: (n_l,) positions in the training images.
            whole: the dataset as it was opened, if unreadable images were left out afterwards.
        """
        return cls(
            dataset.name,
            dataset.digest,
            dict(reader),
            _skipped(dataset, whole or dataset),
            len(dataset.train),
            rule,
            float(ratio),
            int(seed),
            np.__version__,
            labelled,
            tuple(dataset.train.ids[k] for k in labelled),
            split_digest(labelled),
        )

    @property
    def name(self) -> str:
        """The file's name. The ratio has all its digits: two ratios never share a file."""
        return f"{self.rule}-p{self.ratio!r}-seed{self.seed}.json"

    def path(self, folder: Path) -> Path:
        """The file's path, given the folder of all split files."""
        return folder / f"{self.dataset}-{self.dataset_digest[:12]}" / self.name

    def write(self, path: Path) -> None:
        """Write the file atomically and create its folder.

        Raises:
            OSError: the folder cannot be written to.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["labelled"] = self.labelled.tolist()
        atomic_write_json(path, {"format": FORMAT, **values})


def _skipped(dataset: Dataset, whole: Dataset) -> dict[str, tuple[str, ...]]:
    found = {}
    for split in ("train", "test"):
        part, full = getattr(dataset, split), getattr(whole, split)
        if len(part) != len(full):
            left = set(part.ids)
            found[split] = tuple(name for name in full.ids if name not in left)
    return found


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
    """Read a split file and check its format and its hash, but not the split itself.

    Raises:
        UserError: it cannot be read, is not a split file, or its hash does not match its positions.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"split file {path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
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
    if not is_rule(content["rule"]):
        hint = nearest(content["rule"], SPLIT_RULES)
        raise UserError(f"split file {path}: no rule {content['rule']!r}{hint}")
    if not all(isinstance(name, str) for name in ids):
        raise UserError(f"split file {path}: 'ids' holds something that is no text")
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
    values = {
        "labelled": positions,
        "ids": tuple(ids),
        "skipped": {split: tuple(names) for split, names in content["skipped"].items()},
        "ratio": float(content["ratio"]),
    }
    return SplitRecord(**{key: content[key] for key in _KINDS} | values)


def compare(folder: Path, drawn: SplitRecord) -> bool:
    """Check a split against the file that an earlier call wrote; nothing is written.

    Args:
        folder: folder of all split files.
        drawn: the split drawn now.

    Returns:
        Whether there is a file.

    Raises:
        UserError: the file differs or is damaged.
    """
    path = drawn.path(folder)
    if not path.is_file():
        return False
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
    return True


def keep(folder: Path, drawn: SplitRecord) -> str:
    """Write the split file, or check the split against the existing file.

    Args:
        folder: folder of all split files.
        drawn: the split drawn now.

    Returns:
        "written", "present", or the reason why the file cannot be written: a shared data folder may be
        read-only.

    Raises:
        UserError: the existing file differs or is damaged.
    """
    path = drawn.path(folder)
    if compare(folder, drawn):
        return "present"
    try:
        drawn.write(path)
        path.read_bytes()  # so that a remembered plan stands on the file that was made for it
    except OSError as error:
        return error.strerror or str(error)
    return "written"


def _difference(found: SplitRecord, drawn: SplitRecord) -> str:
    """The first difference, in a few words; empty if there is none."""
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
class Verdict:
    """The result of checking a split file.

    Attributes:
        path: the file.
        text: the split, and what was compared.
        problem: what differs, or why a required check was impossible; empty if the file is right.
    """

    path: Path
    text: str
    problem: str = ""


class Verifier:
    """Draws the splits of files again and compares; opens each dataset once.

    Args:
        opener: opens the dataset of a record without decoding images; `UserError` if it is not available.
    """

    def __init__(self, opener: Callable[[SplitRecord], Dataset]) -> None:
        self.opener = opener
        self.opened: dict[str, Dataset | str] = {}

    def check(self, path: Path) -> Verdict:
        """Check one file.

        This compares its format and hash, its name, the subset that its rule draws, the published subset
        where that is on record, and the names of the images. The names need the dataset: without it they
        are not compared for a published split; a stratified split cannot be drawn again without the labels,
        which is reported as a problem.
        """
        try:
            record = load(path)
        except UserError as error:
            return Verdict(path, "", str(error).removeprefix(f"split file {path}: "))
        text = (
            f"{record.dataset}, {record.rule}, ratio {record.ratio:g}, seed {record.seed}: "
            f"{len(record.labelled):,} of {record.n_train:,}"
        )
        if _NAME.fullmatch(path.name) and path.name != record.name:
            return Verdict(path, text, f"by its content it should be called {record.name}")
        known = known_digest(record.n_train, record.ratio, record.seed)
        if record.rule == "published" and known is not None:
            if record.sha256 != known:
                return Verdict(path, text, "not the published split")
            text += ", equal to the published split"
        try:
            count = labelled_count(record.n_train, record.ratio, record.seed)
            if count != len(record.labelled):
                return Verdict(path, text, f"that ratio is {count:,} images")
            return self._drawn_again(path, record, text)
        except UserError as error:
            return Verdict(path, text, str(error))

    def _drawn_again(self, path: Path, record: SplitRecord, text: str) -> Verdict:
        dataset = self._open(record)
        if isinstance(dataset, str):
            if record.rule != "published":
                return Verdict(path, text, f"it cannot be drawn again without labels: {dataset}")
            labelled, _ = labelled_indices(record.n_train, record.ratio, record.seed)
            if split_digest(labelled) != record.sha256:
                return Verdict(path, text, f"NumPy {np.__version__} draws another subset")
            return Verdict(path, f"{text}; names not compared: {dataset}")
        if dataset.digest != record.dataset_digest:
            return Verdict(
                path,
                text,
                f"made for another dataset (digest {record.dataset_digest[:12]}) than "
                f"the one that is here ({dataset.digest[:12]}, {len(dataset.train):,} training "
                "images)",
            )
        labelled = draw(dataset, record.rule, record.ratio, record.seed).labelled
        now = SplitRecord.of(dataset, record.reader, record.rule, record.ratio, record.seed, labelled)
        return Verdict(path, text, _difference(record, now))

    def _open(self, record: SplitRecord) -> Dataset | str:
        """The dataset of a file, or why it cannot be opened."""
        key = json.dumps([record.dataset, record.reader, record.skipped], sort_keys=True)
        if key not in self.opened:
            try:
                dataset = self.opener(record)
                for split, names in record.skipped.items():
                    dataset = dataset.without(names, split=split)
                self.opened[key] = dataset
            except UserError as error:
                self.opened[key] = str(error).splitlines()[0]
        return self.opened[key]
