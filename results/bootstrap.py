"""Intervals for scores and differences on given test images and trainings: a hierarchical paired bootstrap.

Every resample draws test images with replacement, the same for all methods, so their difficulty cancels in
differences, and computes each run's exact macro average precision on them. It draws trainings too, where
there are several seeds: from a t distribution of what other trainings would do to the mean, because two
or three seeds drawn with replacement show too little of their spread. What an interval covers: the score on
other test sets of this size and, with several seeds, of other trainings and labelled subsets of the same
kind; with one seed, test sets alone.

The spread between seeds is known by few numbers, and looks small by chance where it is not. So no method
(and no pair of methods) counts as steadier than the median one, unless its seeds have equal scores, as those
of a method without training do.

Average precision is the higher the fewer different positives there are, so resamples lie above the score by
half a point and more. Their distribution is centred on the score, so that an interval holds the expected
score about as often as it says.

Which methods differ (`Resampled.pairs`) is told from the same resamples: the statistic of a pair is its
difference in standard errors, and the p-values hold for all pairs at once (step-down max-T).
`python -m benchmarks.checks.coverage` measures how often intervals hold the truth and how often equal methods
are told apart; see docs/statistics.md.

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
            ends, tie = np.unique(np.searchsorted(keys, keys[places], side="right") - 1, return_inverse=True)
            reached = order[: int(ends[-1]) + 1].astype(np.intp)
            begins = np.concatenate([[0], ends[:-1] + 1])
            hits = np.searchsorted(places, ends, side="right") - 1
            self._classes.append((reached, places, begins, hits, tie))

    def mean_ap(self, counts: npt.NDArray[np.integer]) -> Floats:
        """Macro average precision of resampled images.

        Args:
            counts: (R, N) how often each resample has each image; fastest as 8-bit numbers.

        Returns:
            (R,) percent: the mean over the classes with a positive in the resample; NaN without any.
        """
        # A row of all resamples for each image: what is gathered lies together.
        by_image = np.ascontiguousarray(counts.T)
        total, known = np.zeros(len(counts)), np.zeros(len(counts))
        for order, places, begins, hits, tie in self._classes:
            drawn = by_image[order]
            positive = drawn[places]
            # Only the sums at thresholds with a positive are needed.
            between = np.add.reduceat(drawn, begins, axis=0, dtype=np.int32)
            reached = np.cumsum(between, axis=0, dtype=np.int32)
            true = np.cumsum(positive, axis=0, dtype=np.int32)[hits]
            number = true[-1]
            share = np.divide(true, reached, out=np.zeros(true.shape), where=reached > 0)
            found = number > 0
            total += np.where(found, (positive * share[tie]).sum(axis=0) / np.maximum(number, 1), 0)
            known += found
        return np.where(known > 0, 100 * total / np.maximum(known, 1), np.nan)


@dataclass(frozen=True)
class Resampled:
    """Scores of methods in every resample of the test images.

    Attributes:
        points: method -> (S,) score of each seed on the data as they are, percent.
        draws: method -> (S, R) score of each seed on resampled images, percent.
        seeds: seeds that all methods have, S of them.
        images: test images.
    """

    points: Mapping[str, Floats]
    draws: Mapping[str, Floats]
    seeds: tuple[Any, ...]
    images: int

    @property
    def values(self) -> dict[str, float]:
        """Method -> mean over the seeds on the data as they are, percent."""
        return {name: _mean(points) for name, points in self.points.items()}

    def interval(self, method: str, level: float = 0.95) -> Interval:
        """The score of a method, between 0 and 100."""
        own, draws = self.points[method], self.draws[method]
        # Seeds are common to all methods, so that more methods say no more of what seeds do.
        variance = _variance(own, draws, _median_variance(np.stack([*self.points.values()])))
        found = _interval(own, draws, variance, max(len(self.seeds) - 1, 1), level)
        return Interval(found.value, max(found.low, 0.0), min(found.high, 100.0))

    def difference(self, method: str, other: str, level: float = 0.95) -> Interval:
        """The score of a method less that of another."""
        own, draws = self.points[method] - self.points[other], self.draws[method] - self.draws[other]
        variance = _variance(own, draws, _median_variance(self._differences()))
        return _interval(own, draws, variance, self._freedom(), level)

    def pairs(self) -> dict[tuple[str, str], tuple[Interval, float]]:
        """The difference of every pair of methods, first less second, and its adjusted p.

        A p is at least 1 / (R + 1). A pair whose resamples do not vary, one ranking under two names for
        example, has p = 1.
        """
        from scipy import special

        names = list(self.points)
        if len(names) < 2:
            return {}
        first, second = both(len(names))
        differences = self._differences()
        values = np.array([_mean(row) for row in differences])
        draws = [self.draws[names[i]] - self.draws[names[j]] for i, j in zip(first, second, strict=True)]
        typical = _median_variance(differences)
        trainings = np.array(
            [_variance(row, drawn, typical) for row, drawn in zip(differences, draws, strict=True)]
        )
        images = np.stack([drawn.mean(axis=0) for drawn in draws])
        images = images[:, np.isfinite(images).all(axis=0)]
        variances = images.var(axis=1) + trainings
        known = (np.sqrt(variances) > 100 * ROUNDING) & (np.abs(values) > 100 * ROUNDING)
        observed = np.where(known, np.abs(values) / np.sqrt(np.where(known, variances, 1)), 0)
        # Where seeds matter: as many standard errors as were as rare if their spread was known.
        rare = -special.ndtri(special.stdtr(self._freedom(), -observed))
        observed = np.where(trainings > 0, np.minimum(rare, observed), observed)
        seeds = self._trainings(images.shape[1], float(np.median(trainings)))
        without = images - images.mean(axis=1, keepdims=True) + seeds[first] - seeds[second]
        spread = without.std(axis=1, keepdims=True)
        without = np.abs(without / np.where(spread > 0, spread, 1)) * known[:, None]
        p = adjusted_p(observed, (1 + step_down(observed, without.T)) / (1 + images.shape[1]))
        found = {}
        for k, (i, j) in enumerate(zip(first, second, strict=True)):
            interval = _interval(differences[k], draws[k], float(trainings[k]), self._freedom(), 0.95)
            found[names[i], names[j]] = interval, min(float(p[k]), 1.0)
        return found

    def _differences(self) -> Floats:
        """(P, S) differences of all pairs at each seed."""
        scores = np.stack([*self.points.values()])
        first, second = both(len(scores))
        return scores[first] - scores[second]

    def _freedom(self) -> int:
        """Degrees of freedom of a pair's variance, which is at least the median of all pairs."""
        return max(len(self.points) - 1, 1) * max(len(self.seeds) - 1, 1)

    def _trainings(self, count: int, typical: float) -> Floats:
        """(K, R) what other trainings would do to each method's mean, for the joint distribution of pairs.

        Args:
            count: number of draws.
            typical: the median of the pairs' variances.
        """
        scores = np.stack([*self.points.values()])
        methods, seeds = scores.shape
        if seeds < 2:
            return np.zeros((methods, count))
        own = scores - scores.mean(axis=1, keepdims=True)
        own = own - own.mean(axis=0)  # what seeds do to all methods cancels in differences
        variance = np.square(own).sum(axis=1) / (seeds - 1) / seeds * methods / (methods - 1)
        spread = np.sqrt(np.maximum(variance, typical / 2))
        return spread[:, None] * np.random.Generator(np.random.PCG64(1)).standard_normal((methods, count))


def _mean(points: Floats) -> float:
    return math.fsum(points) / len(points)


def _median_variance(rows: Floats) -> float:
    """The median of the variances between seeds of rows (P, S) whose seeds differ; 0 without one."""
    from scipy import special

    varying = rows[np.ptp(rows, axis=1) > 100 * ROUNDING]
    if not len(varying):
        return 0.0
    freedom = rows.shape[1] - 1
    # The median of sample variances lies below the variance.
    return float(np.median(varying.var(axis=1, ddof=1)) * freedom / special.chdtri(freedom, 0.5))


def _variance(own: Floats, draws: Floats, typical: float) -> float:
    """Variance of a mean over seeds beyond what the images explain.

    The variance between seeds is that of these seeds or, if that is more, the typical one. What images
    do to one seed and not to another is a part of it, and is in the resamples already.

    Args:
        own: (S,) a score, or difference of scores, of each seed.
        draws: (S, R) the same of resampled images.
        typical: `_median_variance` of all methods, or of all pairs of them.

    Returns:
        0 with one seed, or where the seeds are equal.
    """
    seeds = len(own)
    if seeds < 2 or np.ptp(own) <= 100 * ROUNDING:
        return 0.0
    images = np.nanmean(np.nanvar(draws - draws.mean(axis=0), axis=1)) * seeds / (seeds - 1)
    return max(float(max(own.var(ddof=1), typical) - images), 0.0) / seeds


def _interval(points: Floats, draws: Floats, trainings: float, freedom: int, level: float) -> Interval:
    """The interval of a mean over seeds.

    Args:
        points: (S,) of the data as they are.
        draws: (S, R) of resampled images.
        trainings: variance of the mean between trainings.
        freedom: degrees of freedom of that variance.
        level: share of the resamples inside.
    """
    drawn = draws.mean(axis=0)
    drawn = drawn - np.nanmean(drawn)
    if trainings:
        rng = np.random.Generator(np.random.PCG64(2))
        drawn = drawn + math.sqrt(trainings) * rng.standard_t(freedom, drawn.shape)
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(_mean(points), _mean(points) + float(low), _mean(points) + float(high))


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
    drawn = np.empty((resamples, images), dtype=np.uint16)  # the same images for all methods and seeds
    for count in drawn:
        count[:] = np.bincount(rng.integers(0, images, images), minlength=images)
    counts = drawn.astype(np.uint8) if drawn.max() < 256 else drawn
    once = np.ones((1, images), dtype=np.int32)
    points, draws = {}, {}
    done, total = 0, len(runs) * len(seeds) * resamples
    progress(done, total)
    for method, trained in runs.items():
        points[method], draws[method] = np.zeros(len(seeds)), np.zeros((len(seeds), resamples))
        for place, seed in enumerate(seeds):
            ranked = Ranked(*trained[seed])
            points[method][place] = ranked.mean_ap(once)[0]
            for start in range(0, resamples, PIECE):
                piece = slice(start, start + PIECE)
                draws[method][place, piece] = ranked.mean_ap(counts[piece])
                done += len(counts[piece])
                progress(done, total)
    return Resampled(points, draws, tuple(seeds), images)
