"""Paired comparison of methods over blocks, with a correction for many comparisons.

A block is one (dataset, labelling budget, seed of the split, seed of the training): within it all methods saw
the same images and labels, so differences within blocks are compared and the much larger spread between
blocks cancels. Blocks of one dataset share its test images, the labelled images of a seed's smaller ratio
are among those of its larger ones, and blocks of one split share all labelled images, so blocks are not
independent samples of the world: a small p says that a method is better on these datasets and splits, and
nothing about other datasets; with a single split, nothing about other splits either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

EXACT_BLOCKS = 16  # up to here all 2^n sign patterns are enumerated
DRAWS = 99_999


def sign_flip_test(differences: npt.ArrayLike) -> float:
    """Two-sided paired permutation test of "the mean difference is zero".

    The signs of the differences are flipped in every possible way (up to 16 differences; beyond
    that in 99,999 random ways from a fixed seed, the observed one added) and the p-value is the
    share of flips whose |mean| is at least the observed one (Fisher 1935; Good 2005, section 3).

    Args:
        differences: (n,) finite differences, one per block.

    Returns:
        p in (0, 1]; its smallest possible value is `smallest_p(n)`. No block gives 1.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError("differences must be one-dimensional and finite")
    n = values.size
    if n == 0:
        return 1.0
    # Flips that give the same mean must count as equal in spite of rounding.
    observed = abs(values.sum()) - 1e-9 * np.abs(values).sum()
    if n <= EXACT_BLOCKS:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float(np.mean(np.abs((1 - 2 * bits) @ values) >= observed))
    rng = np.random.Generator(np.random.PCG64(0))
    extreme = 1
    for start in range(0, DRAWS, 10_000):
        size = min(10_000, DRAWS - start)
        signs = 1 - 2 * rng.integers(0, 2, (size, n), dtype=np.int8)
        extreme += int(np.sum(np.abs(signs @ values) >= observed))
    return extreme / (DRAWS + 1)


def smallest_p(blocks: int) -> float:
    """The smallest p-value that `sign_flip_test` can give with this many blocks."""
    if blocks == 0:
        return 1.0
    return 2.0 ** (1 - blocks) if blocks <= EXACT_BLOCKS else 1 / (DRAWS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for several comparisons (Holm 1979, step-down Bonferroni).

    Args:
        p_values: one per comparison.

    Returns:
        Adjusted p-values in the same order, at most 1; reject where it is below the level.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, (len(p_values) - rank) * p_values[i])
        adjusted[i] = min(1.0, running)
    return adjusted


@dataclass(frozen=True)
class Comparison:
    """Every method against the best one.

    Attributes:
        best: the method with the highest mean over the common blocks; "" if nothing was compared.
        blocks: number of common blocks.
        p_values: Holm-adjusted p-value of each other method that was tested.
        equivalent: tested methods that are not significantly worse than the best.
        left_out: methods that were not tested, with the number of blocks that they have.
        total_blocks: blocks in which any method has a value.
        possible: whether this many blocks could reject anything at the level at all.
        smallest: the smallest adjusted p-value that is possible.
    """

    best: str
    blocks: int
    p_values: dict[str, float]
    equivalent: tuple[str, ...]
    left_out: dict[str, int]
    total_blocks: int
    possible: bool
    smallest: float


def compare_with_best(values: Mapping[str, Mapping[tuple, float]], level: float = 0.05) -> Comparison:
    """Test every method against the best one over the blocks that all of them have.

    A method with values in fewer than half of the blocks would shrink the common blocks of all
    others; it is left out and named.

    Args:
        values: method -> block -> value, higher is better; a missing block is simply absent.
        level: significance level after the correction.

    Returns:
        The comparison; with too few blocks to reject anything, `possible` is False and no method
        is called equivalent.
    """
    every = {block for row in values.values() for block in row}
    left_out = {name: len(row) for name, row in values.items() if 2 * len(row) < len(every)}
    tested = [name for name, row in values.items() if row and name not in left_out]
    common = sorted(set.intersection(*(set(values[name]) for name in tested))) if tested else []
    if len(tested) < 2 or not common:
        return Comparison("", len(common), {}, (), left_out, len(every), False, 1.0)
    table = {name: np.array([values[name][block] for block in common]) for name in tested}
    best = max(tested, key=lambda name: float(table[name].mean()))  # ties: the first one
    others = [name for name in tested if name != best]
    adjusted = holm([sign_flip_test(table[best] - table[name]) for name in others])
    p_values = dict(zip(others, adjusted, strict=True))
    smallest = min(1.0, len(others) * smallest_p(len(common)))
    possible = smallest <= level
    equivalent = tuple(name for name in others if p_values[name] > level) if possible else ()
    return Comparison(best, len(common), p_values, equivalent, left_out, len(every), possible, smallest)
