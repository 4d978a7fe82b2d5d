"""Which methods are significantly worse than the best: all pairs compared over (dataset, seed) units.

Within a unit all methods saw the same images and labels, so the unit's own difficulty cancels in differences.
The labelled images of a smaller ratio are among those of a larger one, so ratios of a seed are not
independent: they are averaged. Units of one dataset share its test images, and units of one split all
labelled images, so a small p says that a method is better on these datasets and splits, and nothing about
others.

The test (`compare`) controls the family-wise error over all pairs, and with it the choice of the best by the
data. `python -m benchmarks.checks.significance` measures its error rate and power; see docs/statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from results.errors import nearest

Block = tuple[Any, Any, Any]
"""(dataset, ratio, seed); the seed may be any key that says which split and training it was."""
FEWEST_UNITS = 6
"""With fewer no verdict is given: at most 2⁴ patterns of signs differ."""
EXACT_UNITS = 14
"""Up to here all patterns of signs are enumerated."""
DRAWS = 19_999
CELLS = 2_000_000
"""Statistics (patterns × pairs) that are held at once."""
POWER = 0.8
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Comparison:
    """All methods against the best one.

    Attributes:
        best: the method with the highest mean over the units; "" if nothing was compared.
        units: number of (dataset, seed) units in which all tested methods have a value.
        blocks: number of (dataset, ratio, seed) blocks that these are the means of.
        total_blocks: blocks in which any method has a value.
        level: family-wise level of the test.
        p_values: adjusted p of each tested method against the best; empty where nothing was compared.
        pair_p_values: adjusted p of every pair of tested methods, in the order of the values.
        more_seeds: about how many more seeds would tell a method from the best, where that is not done
            yet; None for more than `MOST_SEEDS`.
        left_out: methods that were not tested, with the number of blocks that they have.
        methods: all that have values, tested or not.
    """

    best: str
    units: int
    blocks: int
    total_blocks: int
    level: float
    p_values: Mapping[str, float]
    pair_p_values: Mapping[tuple[str, str], float]
    more_seeds: Mapping[str, int | None]
    left_out: Mapping[str, int]
    methods: tuple[str, ...]

    @property
    def decided(self) -> bool:
        """Whether there are enough units for a verdict."""
        return bool(self.best) and self.units >= FEWEST_UNITS

    @property
    def equivalent(self) -> tuple[str, ...]:
        """Tested methods that are not significantly worse than the best; none without a verdict."""
        return tuple(name for name in self.p_values if not self.worse(name)) if self.decided else ()

    def worse(self, method: str) -> bool:
        """Whether a method is significantly worse than the best; False without a verdict, or if not tested.

        Raises:
            ValueError: it was not among the values.
        """
        if method not in self.methods:
            raise ValueError(f"no method {method!r} was compared{nearest(method, self.methods)}")
        return self.decided and self.p_values.get(method, 1.0) <= self.level


def compare(values: Mapping[str, Mapping[Block, float]], level: float = 0.05) -> Comparison:
    """Compare all methods pairwise, and so every one with the best.

    Ratios are averaged within a unit, over the blocks that all tested methods have. A method with values in
    fewer than half of the blocks would shrink those of all others; it is left out and named.

    The statistic of a pair is |mean difference| / √(q + q₀) with q the pair's mean squared difference over
    units and q₀ the 10th percentile of all pairs' (a moderated t statistic, as in Tusher, Tibshirani, Chu,
    PNAS 2001: pairs that happen to vary little do not set the bar). Its distribution is that over all
    sign patterns, each flipping the differences of whole units; q and q₀ do not depend on the signs, so the
    test is exact where all methods are equal and their differences symmetric; where some differ it is so
    up to q₀, which depends on all pairs. P-values are adjusted by step-down max-T over all pairs
    (Westfall, Young 1993): a hopeless method is rejected first and does not raise the bar for the others.

    Args:
        values: method -> (dataset, ratio, seed) -> score, higher is better; a missing block is absent.
        level: family-wise level, in (0, 1).

    Returns:
        The comparison. With fewer than six units it gives no verdict.

    Raises:
        ValueError: a score that is not finite, or a level outside (0, 1).

    >>> good = {("d", 0.05, seed): 60.0 + seed for seed in range(7)}
    >>> bad = {block: score - 2 for block, score in good.items()}
    >>> found = compare({"a": good, "b": bad, "c": good})
    >>> found.best, found.worse("b"), found.worse("c"), found.worse("a")
    ('a', True, False, False)
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie in (0, 1)")
    _check(values)
    every = {block for row in values.values() for block in row}
    left_out = {name: len(row) for name, row in values.items() if not row or 2 * len(row) < len(every)}
    tested = [name for name in values if name not in left_out]
    common = set.intersection(*(set(values[name]) for name in tested)) if tested else set()
    if len(tested) < 2 or not common:
        return Comparison("", 0, len(common), len(every), level, {}, {}, {}, left_out, tuple(values))
    units: dict[tuple[Any, Any], list[Block]] = {}
    for block in sorted(common, key=repr):  # drawn signs and rounding follow the order
        units.setdefault((block[0], block[2]), []).append(block)
    table = np.array(
        [
            [math.fsum(values[name][block] for block in unit) / len(unit) for unit in units.values()]
            for name in tested
        ]
    )
    means = [math.fsum(row) for row in table]
    best = max(range(len(tested)), key=means.__getitem__)  # ties: the first one
    p_pairs = _all_pairs(table)
    adjusted = {name: float(p_pairs[best, k]) for k, name in enumerate(tested) if k != best}
    datasets = len({dataset for dataset, _ in units})
    more = {
        name: _more_seeds(table[best] - table[k], len(tested), level, datasets)
        for k, name in enumerate(tested)
        if k != best and adjusted[name] > level
    }
    pairs = {(tested[i], tested[j]): float(p_pairs[i, j]) for i, j in zip(*_pairs(len(tested)), strict=True)}
    return Comparison(
        tested[best],
        len(units),
        len(common),
        len(every),
        level,
        adjusted,
        pairs,
        more,
        left_out,
        tuple(values),
    )


def _check(values: Mapping[str, Mapping[Block, float]]) -> None:
    for name, row in values.items():
        for block, score in row.items():
            if not math.isfinite(score):
                raise ValueError(f"the score of {name} at {block} is {score}; leave out what is missing")


def _pairs(count: int) -> tuple[npt.NDArray[np.intp], ...]:
    return np.triu_indices(count, 1)


def signs(units: int) -> npt.NDArray[np.float64]:
    """Patterns of signs, a row each; the first one changes nothing.

    Up to `EXACT_UNITS` all that differ in more than a change of all signs, else `DRAWS` of a fixed seed.
    """
    if units <= EXACT_UNITS:
        bits = (np.arange(2 ** (units - 1))[:, None] >> np.arange(units)) & 1
        return (1 - 2 * bits).astype(np.float64)
    rng = np.random.Generator(np.random.PCG64(0))
    drawn = 1.0 - 2.0 * rng.integers(0, 2, (DRAWS, units))
    return np.concatenate([np.ones((1, units)), drawn])


def _all_pairs(table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Adjusted p-values of all pairs, (K, K) symmetric with 1 on the diagonal, of scores (K, units)."""
    first, second = _pairs(len(table))
    differences = (table[first] - table[second]).T
    squares = np.square(differences).mean(axis=0)
    spread = len(differences) * np.sqrt(squares + np.quantile(squares, 0.1))
    differences = differences / np.where(spread > 0, spread, 1)
    observed = np.abs(differences.sum(axis=0))
    order = np.argsort(-observed, kind="stable")
    # Patterns with the same mean must count as equal in spite of rounding.
    bars = observed[order] * (1 - 1e-9)
    patterns = signs(len(differences))
    reached = np.zeros(len(order))
    rows = max(1, CELLS // len(order))
    for start in range(0, len(patterns), rows):
        flipped = np.abs(patterns[start : start + rows] @ differences[:, order])
        # Of each pattern the largest statistic among a pair and those that are less clear than it.
        largest = np.maximum.accumulate(flipped[:, ::-1], axis=1)[:, ::-1]
        reached += (largest >= bars).sum(axis=0)
    p = np.maximum.accumulate(reached / len(patterns))
    adjusted = np.ones((len(table), len(table)))
    adjusted[first[order], second[order]] = p
    adjusted[second[order], first[order]] = p
    return adjusted


def _more_seeds(differences: Sequence[float] | Any, methods: int, level: float, datasets: int) -> int | None:
    """Seeds that are missing for a power of 80 %, by the normal approximation with Bonferroni's bar."""
    size = len(differences)
    spread = float(np.std(differences, ddof=1)) if size > 1 else 0.0
    effect = abs(float(np.mean(differences)))
    if not spread or not effect:
        return None
    normal = NormalDist()
    bar = normal.inv_cdf(1 - level / (methods * (methods - 1))) + normal.inv_cdf(POWER)
    units = max((bar * spread / effect) ** 2, FEWEST_UNITS)
    seeds = math.ceil((units - size) / datasets)
    return max(seeds, 1) if seeds <= MOST_SEEDS else None
