"""The forty classes of GlyphScenes: names, contexts and how often they occur."""

from __future__ import annotations

import math
from functools import cache
from itertools import accumulate

SEEDS = {"glyphscenes": 0, "glyphscenes-dev": 99}
"""Seed of the scenes of each dataset; what is chosen by looking at scores is chosen on `glyphscenes-dev`."""

# name, code point, frequency rank (0 = most frequent); the ranks mix heads and tails in a context.
CONTEXTS: dict[str, tuple[tuple[str, int, int], ...]] = {
    "weather": (
        ("sun", 0x2600, 0),
        ("cloud", 0x2601, 6),
        ("umbrella", 0x2602, 14),
        ("snowman", 0x2603, 24),
        ("snowflake", 0x2744, 36),
    ),
    "office": (
        ("telephone", 0x260E, 4),
        ("scissors", 0x2702, 19),
        ("envelope", 0x2709, 11),
        ("pencil", 0x270E, 31),
    ),
    "chess": (
        ("chess king", 0x265A, 12),
        ("chess queen", 0x265B, 22),
        ("chess rook", 0x265C, 29),
        ("chess bishop", 0x265D, 34),
        ("chess knight", 0x265E, 8),
    ),
    "cards": (
        ("spade", 0x2660, 9),
        ("heart", 0x2665, 2),
        ("diamond", 0x2666, 17),
        ("club", 0x2663, 26),
        ("dice", 0x2684, 38),
    ),
    "travel": (
        ("airplane", 0x2708, 1),
        ("anchor", 0x2693, 15),
        ("flag", 0x2691, 27),
        ("ship wheel", 0x2638, 39),
    ),
    "hazard": (
        ("skull", 0x2620, 7),
        ("radiation", 0x2622, 18),
        ("biohazard", 0x2623, 30),
        ("warning sign", 0x26A0, 35),
    ),
    "workshop": (
        ("hammers", 0x2692, 13),
        ("swords", 0x2694, 23),
        ("gear", 0x2699, 5),
        ("recycling", 0x267B, 33),
    ),
    "leisure": (
        ("coffee cup", 0x2615, 16),
        ("music note", 0x266B, 3),
        ("smiley face", 0x263A, 21),
        ("peace sign", 0x262E, 28),
        ("flower", 0x2740, 37),
    ),
    "night": (
        ("moon", 0x263E, 20),
        ("star", 0x2605, 10),
        ("comet", 0x2604, 25),
        ("cat", 0x1F431, 32),
    ),
}


def class_names() -> tuple[str, ...]:
    """Return the forty class names, grouped by context."""
    return tuple(name for members in CONTEXTS.values() for name, _, _ in members)


def contexts() -> dict[str, tuple[str, ...]]:
    """Return the class names of each context."""
    return {key: tuple(name for name, _, _ in members) for key, members in CONTEXTS.items()}


def category_ids() -> dict[str, int]:
    """Return the COCO category id of each class (ids have gaps, as in COCO)."""
    return {
        name: 10 * c + i + 1
        for c, members in enumerate(CONTEXTS.values())
        for i, (name, _, _) in enumerate(members)
    }


def _weight(rank: int, flat: bool) -> float:
    """Relative frequency of the class of a rank: about 1 : 30 between first and last."""
    weight = math.exp(-3.3 * (rank / 39) ** 0.7)
    return round(math.sqrt(weight) if flat else weight, 6)


@cache
def tables(flat: bool) -> dict[str, tuple[tuple[str, ...], tuple[float, ...]]]:
    """Names and cumulative weights: "contexts", "all", and one entry for each context."""
    tables = {}
    everything: list[tuple[str, float]] = []
    groups: list[tuple[str, float]] = []
    for key, members in CONTEXTS.items():
        pairs = [(name, _weight(rank, flat)) for name, _, rank in members]
        tables["context " + key] = _cumulative(pairs)
        everything += pairs
        groups.append((key, sum(weight for _, weight in pairs)))
    tables["contexts"] = _cumulative(groups)
    tables["all"] = _cumulative(everything)
    return tables


def _cumulative(pairs: list[tuple[str, float]]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    return tuple(name for name, _ in pairs), tuple(accumulate(weight for _, weight in pairs))
