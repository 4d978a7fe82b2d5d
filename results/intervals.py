"""Intervals beside a table: `results.bootstrap` on the stored predictions of each column's finished runs."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tabulate import tabulate

from results.bootstrap import RESAMPLES, Resampled, resample
from results.columns import Column, percent
from results.errors import StoreError
from results.frames import located
from results.store import RunStore
from results.text import csv_of, exact, one_line, terminal

ARRAYS = {"last": "scores", "model": "raw_scores"}
"""Which stored scores a selection rule means."""


@dataclass(frozen=True)
class Row:
    """A method in one column, percent with the ends of 95 % intervals.

    Attributes:
        dataset: its name.
        ratio: labelled share.
        budget: what the grid says instead of a share, or "".
        label: row of the table.
        value: mean over the seeds.
        low: lower end of its interval.
        high: upper end.
        behind: difference from the best of the column, 0 for the best itself.
        behind_low: lower end of the difference's interval.
        behind_high: upper end.
        seeds: number of seeds that were drawn from.
        images: number of test images.
        made_of: SHA-256 (hex) of what the column was computed from.
    """

    dataset: str
    ratio: float
    budget: str
    label: str
    value: float
    low: float
    high: float
    behind: float
    behind_low: float
    behind_high: float
    seeds: int
    images: int
    made_of: str


def compute(
    store: RunStore,
    wanted: Sequence[dict[str, Any]],
    rule: str,
    earlier: Sequence[Row] = (),
    resamples: int = RESAMPLES,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[Row], list[str]]:
    """Intervals of every column of a table.

    Args:
        store: where the runs are.
        wanted: see `results.frames.collect`.
        rule: "last" or "model"; of other rules no scores are stored.
        earlier: rows that were computed before; a column that is made of the same is taken from them.
        resamples: of each column.
        say: gets a line when a column begins.

    Returns:
        The rows, and a line on each run or method that is left out.

    Raises:
        StoreError: the rule has no stored scores.
    """
    if rule not in ARRAYS:
        raise StoreError(
            f"intervals need stored scores, which the rules {', '.join(ARRAYS)} have, not {rule!r}"
        )
    columns: dict[Column, dict[str, dict[tuple[int, int], tuple[Path, str]]]] = {}
    left_out = []
    for keys, directory in located(store, wanted):
        column = Column(keys["dataset"], float(keys["ratio"]), keys["budget"])
        state, result = store.read(directory)
        if result is None:
            left_out.append(
                f"{keys['label']}, {column.dataset} {column.share}, seed {keys['seed']}: {state.kind}"
            )
            continue
        seed = int(keys["split_seed"]), int(keys["seed"])
        columns.setdefault(column, {}).setdefault(keys["label"], {})[seed] = (
            directory,
            store.digest(directory),
        )
    rows: list[Row] = []
    for column, methods in columns.items():
        most = max(len(runs) for runs in methods.values())
        for label in [label for label, runs in methods.items() if len(runs) < most]:
            left_out.append(
                f"{label}, {column.dataset} {column.share}: {len(methods[label])} of {most} seeds"
            )
            del methods[label]
        made_of = _made_of(column, methods, rule, resamples)
        known = [row for row in earlier if row.made_of == made_of]
        if not known:
            what = f"{resamples} resamples of {len(methods)} methods"
            say(f"intervals of {column.dataset}, {column.share}: {what}")
            try:
                known = _rows(column, _resampled(store, methods, rule, resamples), made_of)
            except ValueError as error:
                left_out.append(f"{column.dataset} {column.share}: {one_line(str(error))}")
        rows += known
    return rows, left_out


def _made_of(
    column: Column, methods: dict[str, dict[tuple[int, int], tuple[Path, str]]], rule: str, resamples: int
) -> str:
    text = f"{tuple(column)} {rule} {resamples}\n" + "".join(
        f"{label} {seed} {digest}\n"
        for label, runs in methods.items()
        for seed, (_, digest) in sorted(runs.items())
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _resampled(
    store: RunStore, methods: dict[str, dict[tuple[int, int], tuple[Path, str]]], rule: str, resamples: int
) -> Resampled:
    arrays: dict[str, dict[tuple[int, int], tuple[Any, Any]]] = {}
    for label, runs in methods.items():
        arrays[label] = {}
        for seed, (directory, _) in runs.items():
            found = store.predictions(directory)
            scores = found.get(ARRAYS[rule], found["scores"])  # a fitted method has one model
            if "labels" not in found:
                raise ValueError(f"{directory}: an earlier version stored no labels; run it again")
            arrays[label][seed] = scores, found["labels"]
    return resample(arrays, resamples)


def _rows(column: Column, found: Resampled, made_of: str) -> list[Row]:
    best = max(found.values, key=found.values.__getitem__)
    rows = []
    for label in found.values:
        own, behind = found.interval(label), found.difference(label, best)
        numbers = own.value, own.low, own.high, behind.value, behind.low, behind.high
        rows.append(Row(*column, label, *numbers, len(found.seeds), found.images, made_of))
    return rows


def to_text(rows: Sequence[Row], left_out: Sequence[str]) -> str:
    """A plain table with what it covers below it."""
    head = ["method", "dataset", "labels", "mAP", "95 %", "behind the best", "95 %"]
    shown = [
        [
            terminal(row.label),
            terminal(row.dataset),
            row.budget or percent(row.ratio),
            f"{row.value:.1f}",
            f"{row.low:.1f} to {row.high:.1f}",
            f"{row.behind:.1f}" if row.behind else "",
            f"{row.behind_low:.1f} to {row.behind_high:.1f}" if row.behind else "",
        ]
        for row in rows
    ]
    lines = [tabulate(shown, head, "simple", disable_numparse=True)]
    for dataset, seeds, images in sorted({(row.dataset, row.seeds, row.images) for row in rows}):
        covered = (
            "other test sets of this size, other trainings and labelled subsets"
            if seeds > 1
            else "other test sets of this size alone"
        )
        lines.append(
            f"{terminal(dataset)}: hierarchical paired bootstrap, {seeds} seed{'s' * (seeds > 1)} and "
            f"{images} test images; covers {covered}."
        )
    lines += [one_line(f"left out: {line}") for line in left_out]
    return "\n".join(lines)


def to_csv(rows: Sequence[Row]) -> str:
    """A row per method and column, full precision."""
    names = [field.name for field in fields(Row)]
    return csv_of([names, *([exact(getattr(row, name)) for name in names] for row in rows)])


def from_csv(path: Path) -> list[Row]:
    """Rows that `to_csv` wrote; none where the file is absent or anything else."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            kinds = {"ratio": float, "seeds": int, "images": int} | dict.fromkeys(
                ("value", "low", "high", "behind", "behind_low", "behind_high"), float
            )
            return [
                Row(**{name: kinds.get(name, str)(text) for name, text in row.items()})
                for row in csv.DictReader(stream)
            ]
    except (OSError, ValueError, TypeError, UnicodeDecodeError):
        return []  # it is computed anew
