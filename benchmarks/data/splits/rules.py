"""Which training images are labelled: by the published rule, a stratified one, or a user's list."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.dataset import Dataset
from benchmarks.data.splits import lists
from methods.errors import UserError, nearest
from results.text import listed

SPLIT_RULES = ("published", "stratified")
_PER_CLASS = re.compile(r"([1-9]\d*)-per-class")
_KNOWN = Path(__file__).with_name("published_splits.json")
_CANDIDATES = 2048
"""Candidates for one correction of a stratified split; more would not improve it."""
_UNIT = 1 << 20
"""Denominator of the weights: integer sums are the same on every machine."""


@dataclass(frozen=True, eq=False)
class Partition:
    """A dataset's training images, divided into labelled and unlabelled ones.

    Attributes:
        labelled: (n_l,) int64 positions; a held-out part is taken from its end.
        unlabelled: (n_u,) int64 positions of the others, in the order of
            `RandomState(seed).permutation(n_train)` for every rule: one labelled subset and one seed give one
            run.
        notes: remarks for the user.
    """

    labelled: NDArray[np.int64]
    unlabelled: NDArray[np.int64]
    notes: tuple[str, ...] = ()


def check_rule(rule: str) -> None:
    """Check that the `split` of a dataset is a rule's name or a file with a known ending.

    Raises:
        UserError: it is neither.
    """
    if rule not in SPLIT_RULES and not lists.is_file(rule):
        raise UserError(
            f"no split {rule!r}{nearest(rule, SPLIT_RULES)}; a list of your own is a file that ends in "
            f"{', '.join(lists.ENDINGS)}"
        )


def is_rule(rule: str) -> bool:
    """Whether a split is drawn by a rule, and not a user's list; "4-per-class" is the rule of a budget."""
    return rule in SPLIT_RULES or _PER_CLASS.fullmatch(rule) is not None


def sees_hidden_labels(rule: str, unlabelled: int) -> bool:
    """Whether a rule has read labels of images that it leaves unlabelled, of which there are so many."""
    return is_rule(rule) and rule != "published" and unlabelled > 0


def draw(dataset: Dataset, rule: str, ratio: float, seed: int) -> Partition:
    """Divide the training images of a dataset.

    Args:
        dataset: its images and labels.
        rule: "published" (`labelled_indices`), "stratified" (`stratified_indices`), "N-per-class"
            (`per_class_indices`), or a user's file (`lists.read`).
        ratio: labelled share p in (0, 1]; "N-per-class" does not read it.
        seed: seed of the split, 0 to 2^32 - 1.

    Raises:
        UserError: an unknown rule, a bad ratio, seed or file, or a NumPy that no longer draws the
            published subset.
    """
    if match := _PER_CLASS.fullmatch(rule):
        number = int(match[1])
        labelled, unlabelled, few = per_class_indices(dataset.train.labels, number, seed)
        return Partition(labelled, unlabelled, _too_few(dataset, few, number))
    check_rule(rule)
    if rule == "published":
        return Partition(*_as_known(*labelled_indices(len(dataset.train), ratio, seed), ratio, seed))
    if rule == "stratified":
        return Partition(*stratified_indices(dataset.train.labels, ratio, seed, dataset.classes))
    count = labelled_count(len(dataset.train), ratio, seed)
    labelled, notes = lists.read(rule, dataset.train, ratio, seed, count)
    order = _order(len(dataset.train), seed)
    return Partition(labelled, order[~np.isin(order, labelled)], notes)


def labelled_count(n_train: int, ratio: float, seed: int) -> int:
    """Number of labelled images: `int(ratio * n_train)`.

    Raises:
        UserError: a ratio outside (0, 1], one that leaves no labelled image, or a bad seed.
    """
    if not 0.0 < ratio <= 1.0:
        raise UserError(f"ratio is {ratio:g}; the labelled share must lie in (0, 1]")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must lie in 0 … {2**32 - 1}")
    count = int(ratio * n_train)
    if count == 0:
        raise UserError(
            f"ratio {ratio:g} of {n_train} training images is no labelled image; "
            f"use at least {1 / n_train:.2g}"
            if n_train
            else "there is no training image"
        )
    return count


def labelled_indices(n_train: int, ratio: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The published split: a prefix of a seeded permutation (xiemk/SSMLL-CAP).

    Args:
        n_train: number of training images.
        ratio: labelled share p in (0, 1]; with 1 the unlabelled pool is empty.
        seed: seed of the permutation, 0 to 2^32 - 1; published results use 1.

    Returns:
        Labelled and unlabelled positions, int64, both in the permutation's order: the first
        `int(ratio * n_train)` of `RandomState(seed).permutation(n_train)`, then the rest.

    Raises:
        UserError: a ratio outside (0, 1], one that leaves no labelled image, or a bad seed.
    """
    count = labelled_count(n_train, ratio, seed)
    order = _order(n_train, seed)
    return order[:count], order[count:]


def _order(total: int, seed: int) -> NDArray[np.int64]:
    """The permutation of the published rule, after which every rule orders its unlabelled images."""
    return np.random.RandomState(seed).permutation(total).astype(np.int64)


def stratified_indices(
    labels: NDArray[np.uint8], ratio: float, seed: int, classes: Sequence[str] = ()
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A split in which every class has a labelled image and keeps its share.

    Iterative stratification (Sechidis, Tsoumakas, Vlahavas, ECML-PKDD 2011) into two subsets: the class with
    the fewest images left is divided first, before frequent classes have used up its images. Two things are
    added: each class gets at least one labelled image, and the number of labelled images is made exact by
    moving the images that bring the shares closest. Unlike the published protocol it uses the labels of all
    training images: its numbers are no replacement for published ones. Subsets of larger ratios do not
    contain those of smaller ones.

    Args:
        labels: (N, K) uint8, 1 where the class is present.
        ratio: labelled share p in (0, 1].
        seed: 0 to 2^32 - 1.
        classes: K names for the error message; without them it has column numbers.

    Returns:
        Labelled and unlabelled positions, int64. Labelled: `int(ratio * N)` in random order; unlabelled: in
        the order of the published rule's permutation. They depend on the arguments only, on any machine:
        sums of integers, and the frozen `RandomState` stream.

    Raises:
        UserError: as `labelled_indices`; or a greedy cover leaves classes without a labelled image, because
            there are too few: the message names the classes and the smallest ratio that works.
    """
    total = len(labels)
    count = labelled_count(total, ratio, seed)
    random = np.random.RandomState(seed)
    order = random.permutation(total).astype(np.int64)
    draft = _Draft(labels[order], count)
    draft.stratify()
    draft.cover()
    if not draft.adjust():  # so few images that each is some class's only one
        draft.clear()
        missing = draft.cover()
        size = int(draft.taken.sum())
        if size > count:
            raise _too_small(missing, ratio, size, total, classes)
        draft.adjust()
    labelled = order[draft.taken]
    # In a random order, so that a held-out tail is a random part of it.
    return labelled[random.permutation(count)], order[~draft.taken]


def per_class_indices(
    labels: NDArray[np.uint8], number: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """A few-shot split: a small set in which each class has a number of images.

    Minimum-including sampling (Hou et al., "Few-shot slot tagging with collapsed dependency transfer and
    label-enhanced task-adaptive projection network", ACL 2020) over the published rule's permutation: an
    image is taken if one of its classes has too few so far; then, from the last taken, an image is dropped if
    all its classes keep enough. An image has several classes, so frequent ones have more images than asked
    for. The rule uses the labels of all training images.

    Args:
        labels: (N, K) uint8, 1 where the class is present.
        number: images for each class; a class with fewer has all of them.
        seed: 0 to 2^32 - 1.

    Returns:
        Labelled positions in the permutation's order, unlabelled positions in the same order, and the (k,)
        classes that have fewer images; int64.

    Raises:
        UserError: no training image has a class, or a bad seed.
    """
    total = len(labels)
    labelled_count(total, 1.0, seed)
    order = _order(total, seed)
    available = labels.sum(axis=0, dtype=np.int64)
    wanted = np.minimum(available, number)
    if not wanted.any():
        raise UserError(f"no training image shows a class, so that none has {number}")
    have = np.zeros_like(wanted)
    taken: list[int] = []
    for place in order:
        row = labels[place] != 0
        if (have[row] < wanted[row]).any():
            taken.append(int(place))
            have += row
            if (have >= wanted).all():
                break
    kept = []
    for place in reversed(taken):
        row = labels[place] != 0
        if (have[row] > wanted[row]).all():
            have -= row
        else:
            kept.append(place)
    labelled = np.array(kept[::-1], dtype=np.int64)
    return labelled, order[~np.isin(order, labelled)], np.flatnonzero(available < number)


def _too_few(dataset: Dataset, classes: NDArray[np.int64], number: int) -> tuple[str, ...]:
    """A remark on classes that have fewer training images than asked for."""
    if not len(classes):
        return ()
    counts = dataset.train.labels.sum(axis=0, dtype=np.int64)
    names = [f"{dataset.classes[k]} ({counts[k]})" for k in classes]
    shown = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
    return (f"{len(names)} classes have fewer than {number} training images, all are labelled: {shown}",)


def split_digest(labelled: NDArray[np.int64]) -> str:
    """SHA-256 over the labelled positions in their order, hexadecimal."""
    return hashlib.sha256(np.asarray(labelled).astype("<i8").tobytes()).hexdigest()


def absent_classes(dataset: Dataset, labelled: NDArray[np.int64]) -> tuple[str, ...]:
    """The classes, in their order, that no image at these training positions has."""
    found = dataset.train.labels[labelled].sum(axis=0, dtype=np.int64)
    return tuple(name for name, seen in zip(dataset.classes, found, strict=True) if not seen)


def known_digest(n_train: int, ratio: float, seed: int) -> str | None:
    """The digest of the published rule's subset where it is on record, else None.

    On record are VOC2007, VOC2012, COCO2014 and NUS-WIDE at the four published ratios, seed 1.
    """
    return _known().get((n_train, ratio, seed))


@cache
def _known() -> dict[tuple[int, float, int], str]:
    listed = json.loads(_KNOWN.read_text(encoding="utf-8"))["splits"]
    return {(entry["n_train"], entry["ratio"], entry["seed"]): entry["sha256"] for entry in listed}


def _as_known(
    labelled: NDArray[np.int64], unlabelled: NDArray[np.int64], ratio: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The arguments, checked against the published digest: NumPy promises the stream, but could break it.

    Raises:
        UserError: the subset is on record and differs.
    """
    expected = known_digest(len(labelled) + len(unlabelled), ratio, seed)
    if expected is not None and split_digest(labelled) != expected:
        raise UserError(
            f"NumPy {np.__version__} draws another labelled subset for ratio {ratio:g} and seed "
            f"{seed} than the published code; install the NumPy of constraints.txt"
        )
    return labelled, unlabelled


class _Draft:
    """A stratified split under construction.

    Args:
        rows: (N, K) uint8 labels in random order; ties go to the first.
        count: number of labelled images wanted.

    Attributes:
        taken: (N,) bool, the labelled images.
        have: (K,) int64, number of labelled images of each class.
        target: (K,) float64, number wanted.
    """

    def __init__(self, rows: NDArray[np.uint8], count: int) -> None:
        self.rows, self.count = rows, count
        self.columns = np.asfortranarray(rows)  # most reads take one class
        self.totals = rows.sum(axis=0, dtype=np.int64)
        self.present = self.totals > 0
        self.target = np.where(self.present, np.maximum(self.totals * count / len(rows), 1.0), 0.0)
        self.clear()

    def clear(self) -> None:
        """Label nothing."""
        self.taken = np.zeros(len(self.rows), dtype=bool)
        self.have = np.zeros(self.rows.shape[1], dtype=np.int64)

    def stratify(self) -> None:
        """Divide one class after another, always the one with the fewest undivided images."""
        undivided = np.ones(len(self.rows), dtype=bool)
        left = self.totals.copy()
        while left.any():
            rarest = int(np.argmin(np.where(left > 0, left, len(self.rows) + 1)))
            here = np.flatnonzero((self.columns[:, rarest] != 0) & undivided)
            owed = int(np.rint(self.target[rarest] - self.have[rarest]))
            self._take(here[: max(owed, 0)])
            undivided[here] = False
            left -= self.rows[here].sum(axis=0, dtype=np.int64)
        bare = np.flatnonzero(undivided)  # images without a class
        self._take(bare[: len(bare) * self.count // len(self.rows)])

    def cover(self) -> NDArray[np.int64]:
        """Label the image with the most uncovered classes until every class has a labelled image.

        Returns:
            The classes that had no labelled image when `count` was reached.
        """
        missing = self.present & (self.have == 0)
        gain = self.columns[:, missing].sum(axis=1, dtype=np.int64)
        beyond = np.zeros_like(missing)
        while missing.any():
            best = int(np.argmax(gain))
            self._take(np.array([best]))
            found = missing & (self.rows[best] != 0)
            gain -= self.columns[:, found].sum(axis=1, dtype=np.int64)
            missing = missing & ~found
            if self.taken.sum() == self.count:
                beyond = missing
        return np.flatnonzero(beyond)

    def adjust(self) -> bool:
        """Label or drop images until there are `count`; False when no more can be dropped.

        Each step takes the image that brings the classes closest to their targets, by squared deviation
        relative to the target. A class's only labelled image is never dropped.
        """
        while (missing := self.count - int(self.taken.sum())) != 0:
            sign = 1 if missing > 0 else -1
            free = self.taken if sign < 0 else ~self.taken
            if sign < 0:
                single = self.columns[:, self.present & (self.have == 1)]
                free = free & ~single.any(axis=1)
            candidates = np.flatnonzero(free)[:_CANDIDATES]
            if not len(candidates):
                return False
            change = (2 * sign * (self.have - self.target) + 1) / np.maximum(self.target, 1.0)
            weights = np.rint(change * _UNIT).astype(np.int64)
            best = candidates[np.argmin(self.rows[candidates].astype(np.int64) @ weights)]
            self.taken[best] = sign > 0
            self.have += sign * self.rows[best].astype(np.int64)
        return True

    def _take(self, where: NDArray[np.int64]) -> None:
        self.taken[where] = True
        self.have += self.rows[where].sum(axis=0, dtype=np.int64)


def _too_small(
    missing: NDArray[np.int64], ratio: float, size: int, total: int, classes: Sequence[str]
) -> UserError:
    names = [repr(classes[k]) if classes else f"column {k}" for k in missing]
    return UserError(
        f"ratio {ratio:g} of {total} training images leaves no labelled image of {listed(names, 12)}; a "
        f"stratified split needs a ratio of at least {smallest_ratio(size, total)!r} ({size} images)"
    )


def smallest_ratio(size: int, total: int) -> float:
    """The smallest ratio p of few digits with `int(p * total) >= size`, for messages."""
    unit = 10 ** max(2, math.ceil(math.log10(total)))
    parts = math.ceil(size * unit / total)
    while int(parts / unit * total) < size:  # rounding can make the product too small
        parts += 1
    return min(parts / unit, 1.0)
