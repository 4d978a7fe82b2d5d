"""Signs that a finished training has not worked, which a score alone does not tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

NEAR = 1.5
"""A score below this many times chance is near chance."""


def doubts(score: float, labels: npt.NDArray[Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a person should look at before using a run, a line each.

    Args:
        score: its mAP, percent.
        labels: (n_test, K) of 0 and 1.
        rows: of its epochs, see docs/results.md.
    """
    chance, found = _chance(labels), []
    if score < NEAR * chance:
        found.append(
            f"mAP {score:.2f} is near chance ({chance:.2f}, the mean frequency of the classes): look at its "
            "losses (`logs`, `plots`) and learning rates"
        )
    quality = [row["pseudo_labels"] for row in rows if row.get("pseudo_labels")]
    if quality and all(each["OP"] is None for each in quality):
        found.append(
            f"no pseudo-positive was chosen in any of its {len(quality)} epochs with pseudo-labels: its "
            "thresholds are above all scores"
        )
    return found


def _chance(labels: npt.NDArray[Any]) -> float:
    """About the mAP of a random ranking, percent: the mean frequency of the classes with a positive."""
    frequency = labels.mean(axis=0)
    return 100 * float(frequency[frequency > 0].mean()) if labels.any() else 0.0
