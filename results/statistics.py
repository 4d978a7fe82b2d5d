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
from numbers import Real
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
ROUNDING = 1e-11
"""Differences up to this, or this share of the largest score, are of rounding and count as none."""
Floats = npt.NDArray[np.float64]


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
        more_seeds: about how many more seeds (of every dataset) would tell a method from the best, where
            that is not done yet; None for more than `MOST_SEEDS`. Empty with one unit, which has no spread.
        left_out: methods that were not tested, with the number of blocks that they have.
        methods: all that have values, tested or not.
        means: score of each tested method, the mean over the units.
        datasets: number of datasets of the units.
        cuts: tested methods without which the others would share more units or blocks: how many of each.
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
    means: Mapping[str, float]
    datasets: int
    cuts: Mapping[str, tuple[int, int]]

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


@dataclass(frozen=True)
class Units:
    """Scores by unit, of the methods that are tested.

    Attributes:
        names: tested methods, in the order of the values.
        keys: (dataset, seed) of each unit.
        scores: (K, U) mean of each method over the blocks of each unit.
        blocks: number of blocks that all of them have.
        total_blocks: blocks in which any method has a value.
        left_out: methods that are not tested, with the number of blocks that they have.
        cuts: see `Comparison`.
    """

    names: tuple[str, ...]
    keys: tuple[tuple[Any, Any], ...]
    scores: Floats
    blocks: int
    total_blocks: int
    left_out: Mapping[str, int]
    cuts: Mapping[str, tuple[int, int]]

    def negligible(self) -> float:
        """Differences up to this are of rounding."""
        return ROUNDING * max(1.0, float(np.abs(self.scores).max(initial=0)))


def units_of(values: Mapping[str, Mapping[Block, float]]) -> Units:
    """Average the blocks of each (dataset, seed) unit that all tested methods have.

    A method with values in fewer than half of the blocks would shrink those of all others; it is left out.

    Args:
        values: as for `compare`.

    Raises:
        ValueError: a method's name is no text, a block is not (dataset, ratio, seed), or a score is no finite
            number.
    """
    _check(values)
    every = {block for row in values.values() for block in row}
    left_out = {name: len(row) for name, row in values.items() if not row or 2 * len(row) < len(every)}
    tested = tuple(name for name in values if name not in left_out)
    common = _common(values, tested)
    units: dict[tuple[Any, Any], list[Block]] = {}
    for block in sorted(common, key=repr):  # drawn signs and rounding follow the order
        units.setdefault((block[0], block[2]), []).append(block)
    scores = np.array(
        [
            [math.fsum(values[name][block] for block in unit) / len(unit) for unit in units.values()]
            for name in tested
        ]
    )
    cuts = {}
    for name in tested if len(tested) > 2 else ():
        if len(values[name]) < len(every):
            others = _common(values, [other for other in tested if other != name])
            if len(others) > len(common):
                cuts[name] = len({(block[0], block[2]) for block in others}), len(others)
    return Units(
        tested, tuple(units), scores.reshape(len(tested), len(units)), len(common), len(every), left_out, cuts
    )


def _common(values: Mapping[str, Mapping[Block, float]], names: Sequence[str]) -> set[Block]:
    return set.intersection(*(set(values[name]) for name in names)) if names else set()


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
        ValueError: see `units_of`, or a level outside (0, 1).

    >>> good = {("d", 0.05, seed): 60.0 + seed for seed in range(7)}
    >>> bad = {block: score - 2 for block, score in good.items()}
    >>> found = compare({"a": good, "b": bad, "c": good})
    >>> found.best, found.worse("b"), found.worse("c"), found.worse("a")
    ('a', True, False, False)
    """
    if not isinstance(level, Real) or not 0 < level < 1:
        raise ValueError(f"level is {level!r}; it must be a number in (0, 1)")
    found = units_of(values)
    tested, table = found.names, found.scores
    nothing = len(tested) < 2 or not found.blocks
    means = [] if nothing else [math.fsum(row) / len(row) for row in table]
    best, datasets = 0, len({dataset for dataset, _ in found.keys})
    pairs: dict[tuple[str, str], float] = {}
    adjusted: dict[str, float] = {}
    more: dict[str, int | None] = {}
    if not nothing:
        # Ties, in spite of rounding: the first one.
        best = next(k for k, mean in enumerate(means) if mean >= max(means) - found.negligible())
        p_pairs = _all_pairs(table, found.negligible())
        adjusted = {name: float(p_pairs[best, k]) for k, name in enumerate(tested) if k != best}
        pairs = {
            (tested[i], tested[j]): float(p_pairs[i, j]) for i, j in zip(*both(len(tested)), strict=True)
        }
        for k, name in enumerate(tested):
            if k != best and adjusted[name] > level and table.shape[1] > 1:
                differences = _real(table[best] - table[k], found.negligible())
                more[name] = _more_seeds(differences, len(tested), level, datasets)
    return Comparison(
        best="" if nothing else tested[best],
        units=0 if nothing else len(found.keys),
        blocks=found.blocks,
        total_blocks=found.total_blocks,
        level=level,
        p_values=adjusted,
        pair_p_values=pairs,
        more_seeds=more,
        left_out=found.left_out,
        methods=tuple(values),
        means=dict(zip(tested, means, strict=False)),
        datasets=0 if nothing else datasets,
        cuts=found.cuts,
    )


def _check(values: Mapping[str, Mapping[Block, float]]) -> None:
    form = "give method -> {(dataset, ratio, seed): score}"
    if not isinstance(values, Mapping):
        raise ValueError(f"the values are {_shown(values)}; {form}")
    for name, row in values.items():
        if not isinstance(name, str):
            raise ValueError(f"the method {_shown(name)} is no text; {form}")
        if not isinstance(row, Mapping):
            raise ValueError(f"the values of {name} are {_shown(row)}; {form}")
        for block, score in row.items():
            if not isinstance(block, tuple) or len(block) != 3:
                raise ValueError(
                    f"{name} has a score at {_shown(block)}, not at (dataset, ratio, seed); {form}"
                )
            if any(part is None or part != part for part in block):
                raise ValueError(f"{name} has a score at {_shown(block)}, of which a part is missing; {form}")
            if not isinstance(score, Real) or isinstance(score, bool):
                raise ValueError(
                    f"the score of {name} at {block} is {_shown(score)}, no number; leave out what is missing"
                )
            if not math.isfinite(score):
                raise ValueError(f"the score of {name} at {block} is {score}; leave out what is missing")


def _shown(value: Any) -> str:
    """A value in a message, on one line and shortened."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def _real(differences: Floats, negligible: float) -> Floats:
    """Differences, of which those of rounding are none."""
    return np.where(np.abs(differences) <= negligible, 0.0, differences)


def both(count: int) -> tuple[npt.NDArray[np.intp], ...]:
    """First and second of every pair of ``count`` methods, (P,) each."""
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


def _all_pairs(table: Floats, negligible: float) -> Floats:
    """Adjusted p-values of all pairs, (K, K) symmetric with 1 on the diagonal, of scores (K, units)."""
    first, second = both(len(table))
    differences = _real(table[first] - table[second], negligible).T
    squares = np.square(differences).mean(axis=0)
    spread = len(differences) * np.sqrt(squares + np.quantile(squares, 0.1))
    differences = differences / np.where(spread > 0, spread, 1)
    observed = np.abs(differences.sum(axis=0))
    patterns = signs(len(differences))
    reached = np.zeros(len(observed))
    rows = max(1, CELLS // len(observed))
    for start in range(0, len(patterns), rows):
        reached += step_down(observed, np.abs(patterns[start : start + rows] @ differences))
    p = adjusted_p(observed, reached / len(patterns))
    adjusted = np.ones((len(table), len(table)))
    adjusted[first, second] = adjusted[second, first] = p
    return adjusted


def step_down(observed: Floats, drawn: Floats) -> Floats:
    """How often the largest of a pair's and the less clear pairs' statistics reaches the pair's own.

    Args:
        observed: (P,) statistics of the data, at least 0.
        drawn: (R, P) statistics without any difference.

    Returns:
        (P,) numbers of the R draws.
    """
    order = np.argsort(-observed, kind="stable")
    largest = np.maximum.accumulate(drawn[:, order[::-1]], axis=1)[:, ::-1]
    reached = np.empty(len(order))
    # Patterns with the same mean must count as equal in spite of rounding.
    reached[order] = (largest >= observed[order] * (1 - 1e-9)).sum(axis=0)
    return reached


def adjusted_p(observed: Floats, shares: Floats) -> Floats:
    """P-values of `step_down`'s shares: that of a less clear pair is never below that of a clearer one."""
    order = np.argsort(-observed, kind="stable")
    p = np.empty(len(order))
    p[order] = np.maximum.accumulate(shares[order])
    return p


def _more_seeds(differences: Floats, methods: int, level: float, datasets: int) -> int | None:
    """Seeds that are missing for a power of 80 %, by the normal approximation with Bonferroni's bar."""
    size = len(differences)
    spread, effect = float(np.std(differences, ddof=1)), abs(float(np.mean(differences)))
    if not effect:
        return None
    normal = NormalDist()
    bar = normal.inv_cdf(1 - level / (methods * (methods - 1))) + normal.inv_cdf(POWER)
    # With fewer than the last, even the clearest pattern of signs is not rare enough.
    units = max((bar * spread / effect) ** 2, FEWEST_UNITS, 1 - math.log2(level))
    seeds = math.ceil((units - size) / datasets)
    return max(seeds, 1) if seeds <= MOST_SEEDS else None
