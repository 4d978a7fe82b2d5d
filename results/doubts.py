"""What weakens the verdict of a table, and the checks that found nothing against it, a clause each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from results.columns import Column
from results.intervals import Intervals
from results.statistics import FEWEST_UNITS, Comparison
from results.text import listed

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 6
"""Names that a clause lists."""
OPTIMISTIC = ("max", "oracle")
"""Selection rules that look at the test images."""
Found = tuple[list[str], list[str]]
"""Clauses on what weakens the answer, and on what does not."""


def examine(
    comparison: Comparison,
    runs: pd.DataFrame,
    rule: str,
    here: bool,
    intervals: Intervals | None,
    differing: Sequence[str] = (),
) -> Found:
    """Examine what a verdict rests on.

    Args:
        comparison: of the methods over all blocks.
        runs: a row per wanted run, see `results.tables.Table`.
        rule: selection rule.
        here: whether the verdict is on these test images and trainings.
        intervals: which it is made of then.
        differing: cells whose results different code made.

    Returns:
        What weakens the answer, and the checks that passed.
    """
    parts = (
        _missing(comparison, runs),
        _dependence_here(intervals) if here and intervals else _dependence(comparison, runs),
        _selection(rule, runs),
        _same_labels(runs),
        _code(differing),
        _tuning(runs),
        _training(runs),
    )
    return [line for weak, _ in parts for line in weak], [line for _, passed in parts for line in passed]


def _missing(comparison: Comparison, runs: pd.DataFrame) -> Found:
    weak, passed = [], []
    without = runs[runs["value"].isna()]
    if len(without):
        by_label = Counter(without["label"])
        weak.append(f"{len(without)} of {len(runs)} runs have no value ({_counts(by_label)})")
    else:
        passed.append(f"all {len(runs)} wanted runs have a value")
    if comparison.left_out:
        names = ", ".join(f"{name} ({n})" for name, n in comparison.left_out.items())
        weak.append(
            f"not tested, with results in fewer than half of {comparison.total_blocks} cells × seeds: {names}"
        )
    have = Counter(runs[runs["value"].notna()]["label"])
    for name, (units, blocks) in comparison.cuts.items():
        lacks = comparison.total_blocks - have[name]
        share = ", at least half of them," if 2 * lacks >= comparison.total_blocks else ""
        now, then, what = (
            (comparison.units, units, "units")
            if units > comparison.units
            else (comparison.blocks, blocks, "cells × seeds")
        )
        weak.append(
            f"{name} lacks {lacks} of {comparison.total_blocks} results{share} and cuts what is compared "
            f"across datasets and seeds: the others share {then} {what} without it, {now} with it"
        )
    if not comparison.cuts and len(comparison.means) > 2:
        passed.append("no method takes units from the others")
    return weak, passed


def _dependence(comparison: Comparison, runs: pd.DataFrame) -> Found:
    if not comparison.units:
        return [], []
    weak, passed = [], []
    if comparison.datasets == 1 and comparison.units > 1:
        weak.append(
            f"dependence: the {comparison.units} units are of one dataset and share its test images, so they "
            "say nothing about other datasets"
        )
    elif comparison.units > comparison.datasets:
        weak.append(
            f"dependence: the {comparison.units} units are of {comparison.datasets} datasets, and those of "
            "one dataset share its test images"
        )
    weak += _shared_splits(runs)
    if comparison.blocks > comparison.units:
        passed.append("labelled shares of a seed are averaged, not counted as independent")
    return weak, passed


def _dependence_here(intervals: Intervals) -> Found:
    weak = []
    seeds = {row.seeds for row in intervals.rows}
    columns = Counter(
        dataset for dataset, _, _ in {Column(r.dataset, r.ratio, r.budget) for r in intervals.rows}
    )
    if min(seeds) == 1:
        weak.append("one seed: nothing is said about other trainings and labelled images")
    elif min(seeds) < FEWEST_UNITS:
        weak.append(
            f"{min(seeds)} seeds show little of the spread between trainings: that of the median pair of "
            "methods stands in where a pair's own is smaller"
        )
    several = [name for name, count in columns.items() if count > 1]
    if several:
        weak.append(
            f"dependence: the columns of {_list(several)} share test images and labelled images, so they do "
            "not confirm each other"
        )
    if intervals.left_out:
        weak.append(f"left out of the resampling: {_list(intervals.left_out)}")
    return weak, [
        "all methods were scored on the same test images and labels, and are paired by image and seed"
    ]


def _shared_splits(runs: pd.DataFrame) -> list[str]:
    known = runs[runs["value"].notna()]
    trainings = len(known[["dataset", "split_seed", "seed"]].drop_duplicates())
    splits = len(known[["dataset", "split_seed"]].drop_duplicates())
    if splits == trainings:
        return []
    return [f"dependence: {trainings} units share {splits} draw{'s' * (splits > 1)} of labelled images"]


def _selection(rule: str, runs: pd.DataFrame) -> Found:
    weak, passed = [], []
    if rule in OPTIMISTIC:
        weak.append(f"the selection rule {rule} looks at the test images: scores are optimistic")
    else:
        passed.append(f"the selection rule {rule} does not look at the test images")
    peeking = sorted(set(runs["peeking_rule"].dropna()))
    if peeking:
        weak.append(
            f"labelled images were drawn by {_list(peeking)}, which looked at the labels of all images"
        )
    return weak, passed


def _same_labels(runs: pd.DataFrame) -> Found:
    """Whether all methods of a cell and seed had the same labelled images, as far as results say it."""
    digests: dict[tuple[Any, ...], set[str]] = {}
    for run in runs.to_dict("records"):
        spec = run["spec"] if isinstance(run["spec"], Mapping) else {}
        if "split_digest" in spec:
            place = run["dataset"], run["ratio"], run["budget"], run["split_seed"]
            digests.setdefault(place, set()).add(spec["split_digest"])
    if not digests:
        return [], []
    unequal = sum(len(found) > 1 for found in digests.values())
    if unequal:
        return [f"methods had different labelled images in {unequal} of {len(digests)} cells × seeds"], []
    return [], ["methods had the same labelled images in every cell and seed"]


def _code(differing: Sequence[str]) -> Found:
    if differing:
        return [f"different code made the results of one mean: {_list(differing)}"], []
    return [], ["no mean is over results that are known to be of different code"]


def _tuning(runs: pd.DataFrame) -> Found:
    weak = ["tuning: results do not say how long the settings of each method were searched"]
    rows: dict[str, list[str]] = {}
    for method, label in runs[["method", "label"]].drop_duplicates().itertuples(index=False):
        rows.setdefault(method, []).append(label)
    several = {method: labels for method, labels in rows.items() if len(labels) > 1}
    if several and len(rows) > 1:
        named = _counts({method: len(labels) for method, labels in several.items()})
        weak.append(f"unequal tuning: more than one row, and so more chances to lead: {named}")
    return weak, []


def _training(runs: pd.DataFrame) -> Found:
    """Whether methods differ in the fields of recipe and backbone that they share."""
    values: dict[tuple[Any, ...], dict[str, set[str]]] = {}
    known = False
    for run in runs.to_dict("records"):
        spec = run["spec"] if isinstance(run["spec"], Mapping) else {}
        place = run["dataset"], run["ratio"], run["budget"]
        for part in ("recipe", "backbone"):
            fields = spec.get(part)
            if isinstance(fields, Mapping):
                known = True
                for name, value in fields.items():
                    values.setdefault(place, {}).setdefault(f"{part}.{name}", set()).add(repr(value))
    unequal = sorted({name for fields in values.values() for name, found in fields.items() if len(found) > 1})
    if unequal:
        return [f"methods were trained differently: {_list(unequal)}"], []
    return [], ["backbone and the fields of the recipe that methods share are equal"] if known else []


def _counts(counts: Mapping[str, int]) -> str:
    return _list([f"{name} {count}" for name, count in counts.items()])


def _list(names: Iterable[str]) -> str:
    return listed(list(names), SHOWN)
