"""Intervals beside a table: `results.bootstrap` on the stored predictions of each column's finished runs."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

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


@dataclass(frozen=True)
class Pair:
    """Two methods in one column: do these test images and trainings tell them apart?

    Attributes:
        dataset: its name.
        ratio: labelled share.
        budget: what the grid says instead of a share, or "".
        first: row of the table.
        second: another row.
        difference: the first's value less the second's, points of percent.
        low: lower end of its 95 % interval.
        high: upper end.
        p: adjusted over all pairs of the column, see `results.bootstrap.Resampled.pairs`.
        made_of: as of `Row`.
    """

    dataset: str
    ratio: float
    budget: str
    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    made_of: str


@dataclass(frozen=True)
class Intervals:
    """What resampling says of a table's columns.

    Attributes:
        rows: a method in a column each.
        pairs: two methods in a column each.
        left_out: a line on each run, method or column without intervals.
        resamples: of each column.
    """

    rows: tuple[Row, ...] = ()
    pairs: tuple[Pair, ...] = ()
    left_out: tuple[str, ...] = ()
    resamples: int = RESAMPLES

    def of(self, made_of: str) -> Intervals:
        """The rows and pairs that were made of something; nothing if a pair is missing."""
        rows = tuple(row for row in self.rows if row.made_of == made_of)
        pairs = tuple(pair for pair in self.pairs if pair.made_of == made_of)
        whole = 2 * len(pairs) == len(rows) * (len(rows) - 1)
        return Intervals(rows, pairs) if whole else Intervals()


def compute(
    store: RunStore,
    wanted: Sequence[dict[str, Any]],
    rule: str,
    earlier: Intervals = Intervals(),
    resamples: int = RESAMPLES,
    say: Callable[[str], None] = lambda line: None,
    counter: Callable[[str], Callable[[int, int], None]] = lambda title: lambda done, total: None,
    keep: Callable[[Intervals], None] = lambda found: None,
) -> Intervals:
    """Intervals of every column of a table.

    Args:
        store: where the runs are.
        wanted: see `results.frames.collect`.
        rule: "last" or "model"; of other rules no scores are stored.
        earlier: what was computed before; a column that is made of the same is taken from it.
        resamples: of each column.
        say: gets a line when a column begins.
        counter: gets a column's title, and gives what gets (done, total) while it is resampled.
        keep: gets what there is, and what may still be taken from ``earlier``, after each computed column.

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
    pairs: list[Pair] = []
    for column, methods in columns.items():
        most = max(len(runs) for runs in methods.values())
        for label in [label for label, runs in methods.items() if len(runs) < most]:
            left_out.append(
                f"{label}, {column.dataset} {column.share}: {len(methods[label])} of {most} seeds"
            )
            del methods[label]
        made_of = _made_of(column, methods, rule, resamples)
        found = earlier.of(made_of)
        if not found.rows:
            title = f"intervals of {column.dataset}, {column.share}"
            say(f"{title}: {resamples} resamples of {len(methods)} methods")
            try:
                resampled = _resampled(store, methods, rule, resamples, counter(title))
            except ValueError as error:
                left_out.append(f"{column.dataset} {column.share}: {one_line(str(error))}")
                continue
            found = Intervals(_rows(column, resampled, made_of), _pairs(column, resampled, made_of))
            before = Intervals((*rows, *found.rows, *earlier.rows), (*pairs, *found.pairs, *earlier.pairs))
            keep(before)
        rows += found.rows
        pairs += found.pairs
    return Intervals(tuple(rows), tuple(pairs), tuple(left_out), resamples)


def _made_of(
    column: Column, methods: dict[str, dict[tuple[int, int], tuple[Path, str]]], rule: str, resamples: int
) -> str:
    # With another rule for what trainings add, another word.
    text = f"{tuple(column)} {rule} {resamples} median, 0 to 100\n" + "".join(
        f"{label} {seed} {digest}\n"
        for label, runs in methods.items()
        for seed, (_, digest) in sorted(runs.items())
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _resampled(
    store: RunStore,
    methods: dict[str, dict[tuple[int, int], tuple[Path, str]]],
    rule: str,
    resamples: int,
    progress: Callable[[int, int], None],
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
    return resample(arrays, resamples, progress)


def _rows(column: Column, found: Resampled, made_of: str) -> tuple[Row, ...]:
    best = max(found.values, key=found.values.__getitem__)
    rows = []
    for label in found.values:
        own, behind = found.interval(label), found.difference(label, best)
        numbers = own.value, own.low, own.high, behind.value, behind.low, behind.high
        rows.append(Row(*column, label, *numbers, len(found.seeds), found.images, made_of))
    return tuple(rows)


def _pairs(column: Column, found: Resampled, made_of: str) -> tuple[Pair, ...]:
    return tuple(
        Pair(*column, first, second, difference.value, difference.low, difference.high, p, made_of)
        for (first, second), (difference, p) in found.pairs().items()
    )


def to_text(found: Intervals) -> str:
    """A plain table with what it covers below it; p is adjusted over all pairs of a column."""
    from tabulate import tabulate

    rows = found.rows
    p = {
        (Column(pair.dataset, pair.ratio, pair.budget), *names): pair.p
        for pair in found.pairs
        for names in ((pair.first, pair.second), (pair.second, pair.first))
    }
    best = {Column(row.dataset, row.ratio, row.budget): row.label for row in rows if not row.behind}
    head = ["method", "dataset", "labels", "mAP", "95 %", "behind the best", "95 %", "p"]
    shown = [
        [
            terminal(row.label),
            terminal(row.dataset),
            row.budget or percent(row.ratio),
            f"{row.value:.1f}",
            f"{row.low:.1f} to {row.high:.1f}",
            f"{row.behind:.1f}" if row.behind else "",
            f"{row.behind_low:.1f} to {row.behind_high:.1f}" if row.behind else "",
            p_text(p[column, row.label, best[column]]) if row.behind else "",
        ]
        for row in rows
        for column in [Column(row.dataset, row.ratio, row.budget)]
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
    lines += [one_line(f"left out: {line}") for line in found.left_out]
    return "\n".join(lines)


def p_text(value: float) -> str:
    """A p-value for people."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


Record = TypeVar("Record", Row, Pair)
_KINDS = {"float": float, "int": int, "str": str}


def to_csv(records: Sequence[Row] | Sequence[Pair], kind: type[Row] | type[Pair]) -> str:
    """A line per row, or pair, and column of the table, full precision."""
    names = [field.name for field in fields(kind)]
    lines = [[exact(getattr(record, name)) for name in names] for record in records]
    return csv_of([names, *lines])


def from_csv(path: Path, kind: type[Record]) -> tuple[Record, ...]:
    """Rows or pairs that `to_csv` wrote; none where the file is absent or anything else."""
    kinds = {field.name: _KINDS[str(field.type)] for field in fields(kind)}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return tuple(
                kind(**{name: kinds[name](text) for name, text in line.items()})  # type: ignore[arg-type]
                for line in csv.DictReader(stream)
            )
    except (OSError, ValueError, TypeError, KeyError, UnicodeDecodeError):
        return ()  # it is computed anew
