"""Intervals for scores and differences on given test images and trainings: a hierarchical paired bootstrap.

Every resample draws seeds with replacement, and test images with replacement; all methods get the same draws,
so the difficulty of images and seeds cancels in differences. A method's score in a resample is the mean over
the drawn seeds of the exact macro average precision on the drawn images. What an interval covers: the score
on other test sets of this size and, with several seeds, of other trainings and labelled subsets of the same
kind; with one seed, test sets alone.

Average precision is the higher the fewer different positives there are, so resamples lie above the score by
half a point and more. Their distribution is centred on the score, so that an interval holds the expected
score about as often as it says (`tests/results/test_bootstrap.py`).

Source: Davison, Hinkley, "Bootstrap Methods and their Application", 1997, sections 3.8 and 5.2 (hierarchical
data; bias).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
RESAMPLES = 2000
PIECE = 16
"""Resamples that are computed together: their counts of one class stay in a processor's cache."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval.

    Attributes:
        value: of the data as they are, percent.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float


class Ranked:
    """The scores of one run, sorted once per class, for many weighted average precisions.

    Args:
        scores: (N, K) finite, higher = more present.
        labels: (N, K) of 0 and 1.
    """

    def __init__(self, scores: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
        self._classes = []
        for row, mask in zip(np.ascontiguousarray(scores.T), labels.T.astype(bool), strict=True):
            if not mask.any():
                continue
            keys = -row.astype(np.float64)
            order = np.argsort(keys, kind="stable")
            keys = keys[order]
            # Images with one score are one threshold: each positive counts up to the end of its tie.
            places = np.flatnonzero(mask[order])
            ends = np.searchsorted(keys, keys[places], side="right") - 1
            reached = order[: int(ends[-1]) + 1].astype(np.intp)
            self._classes.append((reached, places, ends, np.searchsorted(places, ends, side="right") - 1))

    def mean_ap(self, counts: npt.NDArray[np.int32]) -> Floats:
        """Macro average precision of resampled images.

        Args:
            counts: (R, N) how often each resample has each image.

        Returns:
            (R,) percent: the mean over the classes with a positive in the resample; NaN without any.
        """
        total, known = np.zeros(len(counts)), np.zeros(len(counts))
        for order, places, ends, hits in self._classes:
            drawn = counts[:, order]
            positive = drawn[:, places]
            number = positive.sum(axis=1)
            reached = np.cumsum(drawn, axis=1, dtype=np.int32)[:, ends]
            true = np.cumsum(positive, axis=1, dtype=np.int32)[:, hits]
            share = np.divide(true, reached, out=np.zeros(true.shape), where=reached > 0)
            found = number > 0
            total += np.where(found, (positive * share).sum(axis=1) / np.maximum(number, 1), 0)
            known += found
        return np.where(known > 0, 100 * total / np.maximum(known, 1), np.nan)


@dataclass(frozen=True)
class Resampled:
    """Scores of methods in every resample.

    Attributes:
        values: method -> score of the data as they are, percent.
        draws: method -> (R,) scores of the resamples, percent.
        seeds: seeds that all methods have, which were drawn from.
        images: test images.
    """

    values: Mapping[str, float]
    draws: Mapping[str, Floats]
    seeds: tuple[Any, ...]
    images: int

    def interval(self, method: str, level: float = 0.95) -> Interval:
        """The score of a method."""
        return _interval(self.values[method], self.draws[method], level)

    def difference(self, method: str, other: str, level: float = 0.95) -> Interval:
        """The score of a method less that of another."""
        value = self.values[method] - self.values[other]
        return _interval(value, self.draws[method] - self.draws[other], level)


def _interval(value: float, draws: Floats, level: float) -> Interval:
    low, high = np.nanquantile(draws - np.nanmean(draws), [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, value + float(low), value + float(high))


def resample(
    runs: Mapping[str, Mapping[Any, tuple[npt.NDArray[Any], npt.NDArray[Any]]]],
    resamples: int = RESAMPLES,
) -> Resampled:
    """Resample the runs of one dataset and budget.

    Args:
        runs: method -> seed -> (scores (N, K), labels (N, K)), all on the same images.
        resamples: number of resamples.

    Returns:
        The resamples, from a fixed seed.

    Raises:
        ValueError: no method, no seed that all have, other images, or no positive at all.
    """
    if not runs:
        raise ValueError("no method has a run to resample")
    seeds = sorted(set.intersection(*(set(row) for row in runs.values())))
    if not seeds:
        raise ValueError(f"no seed has a run of every method: {', '.join(runs)}")
    labels = next(iter(runs.values()))[seeds[0]][1]
    for method, row in runs.items():
        for seed in seeds:
            if not np.array_equal(row[seed][1], labels):
                raise ValueError(f"{method}, seed {seed}: its test images or labels are others")
    if not labels.any():
        raise ValueError("no class has a positive test image")
    images = len(labels)
    rng = np.random.Generator(np.random.PCG64(0))
    drawn_seeds = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), resamples) / len(seeds)
    counts = np.empty((resamples, images), dtype=np.int32)  # the same images for all methods and seeds
    for count in counts:
        count[:] = np.bincount(rng.integers(0, images, images), minlength=images)
    once = np.ones((1, images), dtype=np.int32)
    values, draws = {}, {}
    for method, trained in runs.items():
        points, scores = [], np.zeros(resamples)
        for place, seed in enumerate(seeds):
            ranked = Ranked(*trained[seed])
            points.append(float(ranked.mean_ap(once)[0]))
            for start in range(0, resamples, PIECE):
                piece = slice(start, start + PIECE)
                scores[piece] += drawn_seeds[piece, place] * ranked.mean_ap(counts[piece])
        values[method] = math.fsum(points) / len(points)
        draws[method] = scores
    return Resampled(values, draws, tuple(seeds), images)
