"""Which classes stand behind a mean over classes: one without a positive among the test images has no AP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from results.schema import RULES
from results.text import listed

if TYPE_CHECKING:
    import pandas as pd

    from results.schema import Result

GROUPED = ("mAP", "head", "medium", "tail")
"""Metrics that are means of AP: over all classes that have one, or over those of a group."""
SHOWN = 12
"""Names of classes that a sentence lists."""


@dataclass(frozen=True)
class Evaluated:
    """The classes of a test.

    Attributes:
        classes: (name, group) of all, in the order of the dataset; groups are head, medium and tail.
        absent: names of those without a positive.
    """

    classes: tuple[tuple[str, str], ...]
    absent: tuple[str, ...]

    def part(self, metric: str) -> tuple[int, tuple[str, ...]]:
        """How many classes a metric of `GROUPED` is about, and which of them are in no mean."""
        names = [name for name, group in self.classes if metric in ("mAP", group)]
        return len(names), tuple(name for name in names if name in self.absent)


def evaluated(result: Result) -> Evaluated | None:
    """The classes of a result; every selection rule has the same test images."""
    summaries: Mapping[str, Any] = result["metrics"]
    for rule in RULES:
        found = summaries.get(rule)
        if found:
            names = result["classes"]
            absent = [name for name, ap in zip(names, found["AP"], strict=True) if ap is None]
            return Evaluated(tuple(zip(names, found["groups"], strict=True)), tuple(absent))
    return None


def class_notes(runs: pd.DataFrame, value: str, metric: str) -> list[str]:
    """A sentence on the classes behind each mean; none for a metric that is no mean of AP.

    Args:
        runs: rows of `results.frames.collect`, with the columns dataset and evaluated.
        value: the column of the metric; runs without a value count for nothing.
        metric: its name.
    """
    used = runs[runs[value].notna() & runs["evaluated"].notna()]
    if metric not in GROUPED or used.empty:
        return []
    each = [
        f"{dataset} {behind(rows, metric)}"
        for dataset, rows in used.groupby("dataset", sort=False)["evaluated"]
    ]
    return [f"Classes behind each {'mAP' if metric == 'mAP' else f'mAP of {metric}'}: {'; '.join(each)}."]


def behind(found: pd.Series, metric: str) -> str:
    """The classes behind the values of a metric on one dataset, for people.

    Args:
        found: `Evaluated` of the runs.
        metric: one of `GROUPED`.
    """
    parts = {each.part(metric) for each in found}
    if len(parts) > 1:
        counts = sorted(total - len(absent) for total, absent in parts)
        return f"{counts[0]} to {counts[-1]}, NOT the same in all runs, so that they cannot be compared"
    ((total, absent),) = parts
    names = f" (no positive among the test images: {listed(absent, SHOWN)})" if absent else ""
    return f"{total - len(absent)} of {total}{names}"
