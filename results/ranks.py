"""Further views of a comparison across datasets and seeds: ranks, a rating, practical equivalence.

They are made of the same (dataset, seed) units as the verdict (`results.statistics.units_of`) and say nothing
that it does not test; from six units on. Intervals are of a bootstrap over the units, from a fixed seed.

Ranks: of the mean score (the table's order), and the mean of the ranks within each unit, which the
critical-difference figure shows. Beside it stands Nemenyi's critical difference (Demšar, "Statistical
Comparisons of Classifiers over Multiple Data Sets", JMLR 2006), for comparison: the figure joins what the
verdict's test cannot tell apart, because tests of mean ranks depend on which other methods are there
(Benavoli, Corani, Mangili, "Should We Really Use Post-Hoc Tests Based on Mean-Ranks?", JMLR 2016).

Rating: Bradley and Terry's model of who has the higher score in a unit, ties half a win each, with a won and
a lost game against an average method, so that it exists where a method wins always (the prior: Newman,
"Efficient Computation of Rankings from Pairwise Comparisons", JMLR 2023); on Elo's scale, where 400 points
are odds of 10 to 1 and 1000 is the average. Found by Newton's method for all resamples at once.

Practical equivalence: the Bayesian signed-rank test with a region of practical equivalence (Benavoli et al.,
ICML 2014; Benavoli, Corani, Demšar, Zaffalon, JMLR 2017): how probable it is that the best, neither, or the
other method is better by more than the region.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from results.bootstrap import Interval
from results.statistics import FEWEST_UNITS, Block, Floats, units_of
from results.text import csv_of, exact, terminal

DRAWS = 1000
"""Resamples of the units."""
SAMPLES = 20_000
"""Draws from the posterior of practical equivalence."""
ROPE = 0.5
"""Points of percent by which methods may differ and be practically equivalent."""
PRIOR = 0.5
"""Strength of the prior of the signed-rank test, a difference of 0: that of baycomp."""
ITERATIONS, CLOSE = 200, 1e-9


@dataclass(frozen=True)
class Standing:
    """A method among the others.

    Attributes:
        method: its row.
        rank: of its mean score, with a 95 % interval; 1 is the best.
        mean_rank: mean over the units of its rank there, ties averaged.
        rating: Bradley and Terry's, on Elo's scale.
        best_better: probability that the best method is better by more than the region; None for the best.
        equivalent: probability that they are practically equivalent.
        better: probability that this method is better than the best by more than the region.
    """

    method: str
    rank: Interval
    mean_rank: Interval
    rating: Interval
    best_better: float | None = None
    equivalent: float | None = None
    better: float | None = None


@dataclass(frozen=True)
class Ranks:
    """All methods, the highest mean first.

    Attributes:
        standings: a method each.
        units: number of (dataset, seed) units.
        datasets: number of their datasets.
        rope: region of practical equivalence, points.
        critical: Nemenyi's critical difference of mean ranks at a level of 5 %.
    """

    standings: tuple[Standing, ...]
    units: int
    datasets: int
    rope: float
    critical: float


def ranks(values: Mapping[str, Mapping[Block, float]], rope: float = ROPE) -> Ranks | None:
    """The views of scores.

    Args:
        values: as for `results.statistics.compare`.
        rope: differences up to this count as practically none, above 0.

    Returns:
        The views; None with fewer than two methods or six units.

    Raises:
        ValueError: see `results.statistics.units_of`, or a region that is not above 0.
    """
    if not 0 < rope < np.inf:
        raise ValueError(f"the region of practical equivalence is {rope}; it must be above 0")
    found = units_of(values)
    if len(found.names) < 2 or len(found.keys) < FEWEST_UNITS:
        return None
    from scipy import stats

    step = 100 * max(found.negligible(), np.finfo(float).tiny)
    scores = np.round(found.scores / step) * step  # scores that differ by rounding are ties
    count, size = scores.shape
    inside = stats.rankdata(-scores, axis=0)
    rng = np.random.Generator(np.random.PCG64(0))
    weights = rng.multinomial(size, np.full(size, 1 / size), DRAWS) / size
    once = np.full((1, size), 1 / size)
    views: list[tuple[Floats, Floats]] = []
    for mean in (
        lambda drawn: stats.rankdata(-np.round(drawn @ scores.T / step), axis=1),
        lambda drawn: drawn @ inside.T,
        lambda drawn: ratings(drawn, scores),
    ):
        views.append((mean(once)[0], np.quantile(mean(weights), [0.025, 0.975], axis=0)))
    means = scores.mean(axis=1)
    order = sorted(range(count), key=lambda k: -means[k])
    best = order[0]
    standings = []
    for k in order:
        rank, mean_rank, rating = (
            Interval(float(value[k]), *map(float, ends[:, k])) for value, ends in views
        )
        chances = () if k == best else equivalence(scores[best] - scores[k], rope)
        standings.append(Standing(found.names[k], rank, mean_rank, rating, *chances))
    critical = stats.studentized_range.ppf(0.95, count, np.inf) / np.sqrt(2)
    critical *= np.sqrt(count * (count + 1) / (6 * size))
    datasets = len({dataset for dataset, _ in found.keys})
    return Ranks(tuple(standings), size, datasets, rope, float(critical))


def ratings(weights: Floats, scores: Floats) -> Floats:
    """Ratings on Elo's scale.

    Args:
        weights: (R, U) of the units in each resample; rows sum to 1.
        scores: (K, U).

    Returns:
        (R, K).

    Raises:
        RuntimeError: the iteration did not come to an end, which the prior excludes.
    """
    from scipy.special import expit

    above = (scores[:, None] > scores) + 0.5 * (scores[:, None] == scores)
    count, size = scores.shape
    every = np.arange(count)
    above[every, every] = 0
    wins = np.einsum("ru,iju->rij", weights * size, above)
    games = wins + wins.transpose(0, 2, 1)
    strength = np.zeros((len(weights), count))  # logarithms; Newton steps of at most 1, for it is concave
    for _ in range(ITERATIONS):
        chance = expit(strength[:, :, None] - strength[:, None])
        of_prior = expit(strength)  # one game won and one lost against strength 0
        slope = (wins - games * chance).sum(axis=2) + 1 - 2 * of_prior
        bend = -games * chance * (1 - chance)
        bend[:, every, every] = 2 * of_prior * (1 - of_prior) - bend.sum(axis=2)
        move = np.linalg.solve(bend, slope[:, :, None])[:, :, 0]
        largest = np.abs(move).max(axis=1, keepdims=True)
        strength += move / np.maximum(largest, 1)
        if largest.max() < CLOSE:
            return 1000 + 400 / np.log(10) * strength
    raise RuntimeError("the ratings did not converge")


def equivalence(differences: Floats, rope: float) -> tuple[float, float, float]:
    """Probabilities that a mean difference lies above, inside and below the region of practical equivalence.

    Args:
        differences: (U,) of two methods.
        rope: the region's half width.
    """
    known = np.concatenate([[0.0], differences])
    sums = known[:, None] + known
    above = (sums > 2 * rope) + 0.5 * (sums == 2 * rope)
    below = (sums < -2 * rope) + 0.5 * (sums == -2 * rope)
    rng = np.random.Generator(np.random.PCG64(0))
    weights = rng.dirichlet([PRIOR, *np.ones(len(differences))], SAMPLES)
    shares = [((weights @ region) * weights).sum(axis=1) for region in (above, below)]
    larger = np.stack([shares[0], 1 - shares[0] - shares[1], shares[1]]).argmax(axis=0)
    first, inside, last = np.bincount(larger, minlength=3) / SAMPLES
    return float(first), float(inside), float(last)


def to_text(found: Ranks) -> str:
    """A plain table with what it says below it."""
    from tabulate import tabulate

    best = found.standings[0].method
    head = ["method", "rank", "95 %", "mean rank", "95 %", "rating", "95 %"]
    head += ["best better", "equivalent", "better"]
    rows = [
        [
            terminal(one.method),
            f"{one.rank.value:g}",
            f"{one.rank.low:g} to {one.rank.high:g}",
            f"{one.mean_rank.value:.2f}",
            f"{one.mean_rank.low:.2f} to {one.mean_rank.high:.2f}",
            f"{one.rating.value:.0f}",
            f"{one.rating.low:.0f} to {one.rating.high:.0f}",
            *("" if p is None else f"{p:.3f}" for p in (one.best_better, one.equivalent, one.better)),
        ]
        for one in found.standings
    ]
    return "\n".join(
        [
            tabulate(rows, head, "simple", disable_numparse=True),
            f"Over {found.units} units of {found.datasets} dataset{'s' * (found.datasets > 1)}. Ranks: of "
            "the mean score, and mean of the ranks in each unit; rating: Bradley and Terry's on Elo's scale "
            "(400 points: odds of 10 to 1; 1000: the average); 95 %: bootstrap over the units, "
            f"{DRAWS:,} resamples.",
            f"Best better, equivalent, better: probabilities that {terminal(best)}, neither or the method is "
            f"better by more than {found.rope:g} points (Bayesian signed rank).",
            f"Nemenyi's critical difference of mean ranks at 5 %, for comparison: {found.critical:.2f}.",
        ]
    )


def to_csv(found: Ranks) -> str:
    """A row per method, full precision; the region of practical equivalence stands in each."""
    parts = ("rank", "mean_rank", "rating")
    chances = [field.name for field in fields(Standing)][4:]
    head = ["method", *(f"{part}{end}" for part in parts for end in ("", "_low", "_high")), *chances]
    rows: list[list[Any]] = [[*head, "rope", "units"]]
    for one in found.standings:
        numbers = [
            exact(getattr(getattr(one, part), end)) for part in parts for end in ("value", "low", "high")
        ]
        rows.append(
            [
                one.method,
                *numbers,
                *(exact(getattr(one, name)) for name in chances),
                exact(found.rope),
                found.units,
            ]
        )
    return csv_of(rows)
