"""The record of a dataset's unreadable images, which `skip_bad` leaves out of the cache.

`<cache root>/<name>-<first 12 digits of the dataset's digest>-skipped.json` serves caches of all sizes. It
holds split, id, file and reason of each image, and the file's size and times: a file that was replaced is
read again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks.data.cache.decode import depends_on_setting, load_image, reason_unreadable
from benchmarks.data.cache.source import ABSENT, stamp_of
from benchmarks.data.dataset import Dataset
from methods.errors import UserError
from results.files import atomic_write_json

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Unreadable:
    """One unreadable image.

    Attributes:
        split: "train" or "test".
        id: its name there.
        path: its file.
        reason: why it cannot be read.
        stamp: the file's size and times (`benchmarks.data.cache.source`); None where the system refused to
            read it, which may change without a change of the file.
    """

    split: str
    id: str
    path: str
    reason: str
    stamp: tuple[int, ...] | None


class Skipped:
    """The recorded unreadable images of a dataset.

    Args:
        dataset: the whole dataset.
        cache_root: folder of all caches.

    Raises:
        UserError: the record is damaged.
    """

    def __init__(self, dataset: Dataset, cache_root: Path) -> None:
        self.dataset = dataset
        self.file = cache_root / f"{dataset.name}-{dataset.digest[:12]}-skipped.json"
        self.lock = self.file.with_suffix(".lock")
        self.images: tuple[Unreadable, ...] = ()
        self._rest: Dataset | None = dataset
        self.read()

    def read(self) -> None:
        """Read the record; without a file no image is left out."""
        self._rest = None
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            if found["dataset_digest"] != self.dataset.digest:
                raise ValueError("it belongs to another dataset")
            self.images = tuple(
                Unreadable(**{**image, "stamp": image["stamp"] and tuple(image["stamp"])})
                for image in found["skipped"]
            )
            for image in self.images:
                if (image.split, image.id) not in self._paths:
                    raise ValueError(f"no {image.split} image {image.id!r}")
        except FileNotFoundError:
            self.images = ()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{self.file}: damaged: {error}; remove it and run again") from None

    @property
    def rest(self) -> Dataset:
        """The dataset without the unreadable images.

        Raises:
            UserError: a split would be empty.
        """
        if self._rest is None:  # cached with its digest, which is needed several times
            rest = self.dataset
            for split in SPLITS:
                rest = rest.without([i.id for i in self.images if i.split == split], split=split)
            self._rest = rest
        return self._rest

    @property
    def reasons(self) -> tuple[tuple[str, str], ...]:
        """(id, reason) of each unreadable image, in the order of the dataset."""
        return tuple((image.id, image.reason) for image in self.images)

    def is_current(self) -> bool:
        """Whether no file has changed since it was found unreadable."""
        return all(self._current(image) for image in self.images)

    def refresh(self) -> None:
        """Read the changed files again, and keep those that are still unreadable."""
        found = []
        for image in self.images:
            path = self._paths[image.split, image.id]
            reason = image.reason if self._current(image) else _reason(path)
            if reason:
                found.append(dataclasses.replace(image, path=str(path), reason=reason, stamp=_stamp(path)))
        self._write(found)

    def add(self, found: Iterable[tuple[Path, str]]) -> None:
        """Record files that cannot be read, with the reason of each."""
        reasons = dict(found)
        new = [
            Unreadable(split, name, str(path), reasons[path], _stamp(path))
            for (split, name), path in self._paths.items()
            if path in reasons
        ]
        self._write([*self.images, *new])

    @cached_property
    def _paths(self) -> dict[tuple[str, str], Path]:
        """(split, id) to file, in the order of the dataset."""
        sets = {"train": self.dataset.train, "test": self.dataset.test}
        return {
            (split, name): path
            for split, images in sets.items()
            for name, path in zip(images.ids, images.paths, strict=True)
        }

    def _current(self, image: Unreadable) -> bool:
        path = self._paths[image.split, image.id]
        stamp = _stamp(path)
        # Another folder's image of the same name is another file.
        if stamp is None or stamp != image.stamp or image.path != str(path):
            return False
        # A raised limit or a new decoder makes images readable; both show while the header is read.
        return not depends_on_setting(image.reason) or _reason(path) == image.reason

    def _write(self, images: list[Unreadable]) -> None:
        found = {(image.split, image.id): image for image in images}
        ordered = [found[key] for key in self._paths if key in found]
        if ordered == list(self.images):
            return
        self.images, self._rest = tuple(ordered), None
        try:
            if not ordered:
                self.file.unlink(missing_ok=True)
                return
            atomic_write_json(
                self.file,
                {
                    "dataset": self.dataset.name,
                    "dataset_digest": self.dataset.digest,
                    "skipped": [dataclasses.asdict(image) for image in ordered],
                },
            )
        except OSError as error:
            raise UserError(f"{self.file}: cannot be written: {error.strerror}") from None


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        with open(path, "rb") as file:  # only reading shows a missing permission or a faulty disk
            file.read(1)
    except OSError:
        return None
    found = stamp_of(path)
    return None if found == ABSENT else found


def _reason(path: Path) -> str:
    """Why an image cannot be read; empty if it can."""
    try:
        load_image(path, 8)
    # Plugins raise many kinds, as in `decode_chunk`.
    except Exception as error:
        return reason_unreadable(path, error)
    return ""
