"""Intervals for scores and differences on given test images and trainings: a hierarchical paired bootstrap.

Every resample draws seeds with replacement, and test images with replacement; all methods get the same draws,
so the difficulty of images and seeds cancels in differences. A method's score in a resample is the mean over
the drawn seeds of the exact macro average precision on the drawn images. What an interval covers: the score
on other test sets of this size and, with several seeds, of other trainings and labelled subsets of the same
kind; with one seed, test sets alone.

Average precision is the higher the fewer different positives there are, so resamples lie above the score by
half a point and more. Their distribution is centred on the score, so that an interval holds the expected
score about as often as it says (`tests/results/test_bootstrap.py`).

Which methods differ (`Resampled.pairs`) is told from the same resamples: the statistic of a pair is its
difference in standard errors, its distribution without a difference that of the resamples about their mean,
and the p-values hold for all pairs at once (step-down max-T).

Sources: Davison, Hinkley, "Bootstrap Methods and their Application", 1997, sections 3.8 and 5.2 (hierarchical
data; bias); Romano, Wolf, "Exact and Approximate Stepdown Methods for
Multiple Hypothesis Testing", JASA 2005.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from results.statistics import ROUNDING, Floats, adjusted_p, both, step_down

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

    def pairs(self) -> dict[tuple[str, str], tuple[Interval, float]]:
        """The difference of every pair of methods, first less second, and its adjusted p.

        A p is at least 1 / (R + 1). A pair whose resamples do not vary, one ranking under two names for
        example, has p = 1.
        """
        names = list(self.values)
        if len(names) < 2:
            return {}
        first, second = both(len(names))
        values, draws = np.array([*self.values.values()]), np.stack([*self.draws.values()], axis=1)
        draws = draws[np.isfinite(draws).all(axis=1)]
        differences, drawn = values[first] - values[second], draws[:, first] - draws[:, second]
        drawn = drawn - drawn.mean(axis=0)
        errors = drawn.std(axis=0)
        known = (errors > 100 * ROUNDING) & (np.abs(differences) > 100 * ROUNDING)
        scale = np.where(known, errors, 1)
        observed, without = np.where(known, np.abs(differences) / scale, 0), np.abs(drawn / scale) * known
        p = adjusted_p(observed, (1 + step_down(observed, without)) / (1 + len(draws)))
        return {
            (names[i], names[j]): (self.difference(names[i], names[j]), min(float(one), 1.0))
            for i, j, one in zip(first, second, p, strict=True)
        }


def _interval(value: float, draws: Floats, level: float) -> Interval:
    low, high = np.nanquantile(draws - np.nanmean(draws), [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, value + float(low), value + float(high))


def resample(
    runs: Mapping[str, Mapping[Any, tuple[npt.NDArray[Any], npt.NDArray[Any]]]],
    resamples: int = RESAMPLES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Resampled:
    """Resample the runs of one dataset and budget.

    Args:
        runs: method -> seed -> (scores (N, K), labels (N, K)), all on the same images.
        resamples: number of resamples.
        progress: gets how many of all resamples of runs are done, and how many there are.

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
    done, total = 0, len(runs) * len(seeds) * resamples
    progress(done, total)
    for method, trained in runs.items():
        points, scores = [], np.zeros(resamples)
        for place, seed in enumerate(seeds):
            ranked = Ranked(*trained[seed])
            points.append(float(ranked.mean_ap(once)[0]))
            for start in range(0, resamples, PIECE):
                piece = slice(start, start + PIECE)
                scores[piece] += drawn_seeds[piece, place] * ranked.mean_ap(counts[piece])
                done += len(counts[piece])
                progress(done, total)
        values[method] = math.fsum(points) / len(points)
        draws[method] = scores
    return Resampled(values, draws, tuple(seeds), images)
