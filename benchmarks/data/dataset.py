"""A dataset: images with labels, split into training and test."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from methods.errors import UserError, nearest


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and their labels, in the order that the positions of splits and batches refer to.

    Attributes:
        ids: N names, unique.
        paths: N files.
        labels: (N, K) uint8, 1 where the class is present; read-only.

    Raises:
        ValueError: lengths, dtype or shape do not match.
    """

    ids: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: NDArray[np.uint8]

    def __post_init__(self) -> None:
        labels = self.labels
        if labels.dtype != np.uint8 or labels.ndim != 2 or len(self.ids) != len(labels):
            raise ValueError(f"{len(self.ids)} ids, labels {labels.dtype} {labels.shape}")
        if len(self.paths) != len(self.ids):
            raise ValueError(f"{len(self.ids)} ids, {len(self.paths)} paths")
        labels.setflags(write=False)

    def __len__(self) -> int:
        return len(self.ids)

    def with_label(self) -> ImageSet:
        """The images that have at least one label, in the same order."""
        return self.take(np.flatnonzero(self.labels.any(axis=1)))

    def take(self, positions: ArrayLike) -> ImageSet:
        """The images at (n,) positions, in the order of the positions."""
        where = np.asarray(positions, dtype=np.int64)
        return ImageSet(
            tuple(self.ids[k] for k in where),
            tuple(self.paths[k] for k in where),
            self.labels[where],
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset as runs use it.

    Attributes:
        name: the name shown in tables (the alias of its `DatasetSpec`).
        classes: K class names, in the order of the label columns.
        prompts: K names as prompts write them, such as "dining table".
        train: training images; the labelled subset is drawn from them.
        test: test images.
        notes: remarks for the user, such as accepted counts; not part of the digest.

    Raises:
        UserError: a class is listed twice, a split is empty, or the splits share an image.
        ValueError: the shapes do not match.
    """

    name: str
    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.classes)
        if len(set(self.classes)) != count:
            twice = Counter(self.classes).most_common(1)[0][0]
            raise UserError(f"dataset {self.name!r}: class {twice!r} is listed twice")
        if len(self.prompts) != count:
            raise ValueError(f"{count} classes, {len(self.prompts)} prompts")
        for split, images in (("train", self.train), ("test", self.test)):
            if images.labels.shape[1] != count:
                raise ValueError(f"{count} classes, {split} labels {images.labels.shape}")
            if not len(images):
                raise UserError(f"dataset {self.name!r}: no {split} image has a label")
        shared = set(self.train.paths).intersection(self.test.paths)
        if shared:
            raise UserError(
                f"dataset {self.name!r}: {len(shared)} images are in train and in test, such as {min(shared)}"
            )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over name, classes, prompts, ids and labels (not over paths), hexadecimal."""
        sha = hashlib.sha256()
        for part in ((self.name,), self.classes, self.prompts, self.train.ids, self.test.ids):
            for text in part:
                sha.update(text.encode() + b"\0")
            sha.update(b"\0")
        for images in (self.train, self.test):
            sha.update(str(images.labels.shape).encode())
            sha.update(np.ascontiguousarray(images.labels).tobytes())
        return sha.hexdigest()

    def restrict(self, classes: Iterable[str], *, keep_empty: bool = False) -> Dataset:
        """The dataset with only some classes, in their original order.

        Args:
            classes: names of classes.
            keep_empty: keep images that are left without a label; by default they are dropped.

        Raises:
            UserError: an unknown class, or one listed twice.
        """
        wanted = list(classes)
        for name in wanted:
            if name not in self.classes:
                raise UserError(f"dataset {self.name!r}: no class {name!r}{nearest(name, self.classes)}")
            if wanted.count(name) > 1:
                raise UserError(f"dataset {self.name!r}: class {name!r} is asked for twice")
        columns = [k for k, name in enumerate(self.classes) if name in wanted]

        def reduced(images: ImageSet) -> ImageSet:
            labels = np.ascontiguousarray(images.labels[:, columns])
            part = ImageSet(images.ids, images.paths, labels)
            return part if keep_empty else part.with_label()

        return dataclasses.replace(
            self,
            classes=tuple(self.classes[k] for k in columns),
            prompts=tuple(self.prompts[k] for k in columns),
            train=reduced(self.train),
            test=reduced(self.test),
        )

    def without(self, ids: Iterable[str], *, split: str | None = None) -> Dataset:
        """The dataset without some images, the others in the same order.

        Args:
            ids: names of images.
            split: "train" or "test" drops images of this split only, which matters where both splits use the
                same names; None drops a name from both.

        Raises:
            UserError: an unknown image, or a split would be empty.
        """
        splits = ("train", "test") if split is None else (split,)
        wanted = set(ids)
        here: set[str] = set()
        for name in splits:
            here.update(getattr(self, name).ids)
        for name in sorted(wanted - here):
            raise UserError(f"dataset {self.name!r}: no image {name!r}{nearest(name, here)}")
        if not wanted:
            return self
        rest: dict[str, Any] = {}
        for name in splits:
            images: ImageSet = getattr(self, name)
            rest[name] = images.take([k for k, i in enumerate(images.ids) if i not in wanted])
            if not len(rest[name]):
                raise UserError(
                    f"dataset {self.name!r}: no {name} image would be left without the "
                    f"{len(wanted)} that are left out"
                )
        return dataclasses.replace(self, **rest)
