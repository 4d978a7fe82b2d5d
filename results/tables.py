"""Tables of mean ± std over seeds: a method per row, a (dataset, ratio) per column.

A table is made under one selection rule and says which; a cell with missing runs shows their states
beside what there is. The same results give the same bytes in every format.
"""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from results.columns import Column
from results.errors import StoreError, nearest
from results.evaluated import class_notes
from results.frames import COLUMNS, METRICS, collect
from results.intervals import Intervals
from results.lineage import SUPERSEDED
from results.schema import RULES
from results.statistics import Comparison, compare
from results.store import STATES
from results.verdict import Verdict, judge
from results.versions import MARK, mixed, notes, partly_unknown

if TYPE_CHECKING:
    import pandas as pd

    from results.reproduced import Beside

__all__ = ["TableCell", "Table", "collect", "table"]

LEVEL = 0.05
RULE_TEXT = {
    "last": "last epoch, EMA weights; raw weights where ema_decay = 0",
    "model": "last epoch, raw weights without a moving average",
    "max": "last epoch, the better of EMA and raw weights on the TEST images: optimistic, for comparison "
    "with papers that report it",
    "val": "best epoch on a held-out part of the labelled images",
    "oracle": "best epoch on the TEST images: optimistic, for orientation only",
}
METRIC_TEXT = {
    "mAP": "mAP (macro over the classes with a positive)",
    "OF1": "OF1 (micro F1 at probability 0.5)",
    "CF1": "CF1 (harmonic mean of macro precision and recall at probability 0.5)",
    "head": "mAP of the head classes (most frequent third)",
    "medium": "mAP of the medium classes (middle third by frequency)",
    "tail": "mAP of the tail classes (least frequent third)",
}


@dataclass(frozen=True)
class TableCell:
    """One method on one dataset at one ratio.

    Attributes:
        mean: over the seeds that have a value, percent; None without any.
        std: standard deviation over seeds with ddof = 1; None with fewer than two values.
        n: seeds with a value.
        wanted: seeds that the grid asks for.
        missing: why the others have none: state of the run ("failed", ...) -> how many.
        best: highest mean of its column among the cells in which nothing is missing.
        differing: what is not the same in the code that made the results of the mean, see `results.versions`.
    """

    mean: float | None
    std: float | None
    n: int
    wanted: int
    missing: Mapping[str, int]
    best: bool = False
    differing: tuple[str, ...] = ()

    def number(self) -> str:
        """Mean and std for people, "–" without a value."""
        if self.mean is None:
            return "–"
        return f"{self.mean:.1f}" if self.std is None else f"{self.mean:.1f} ± {self.std:.1f}"

    def remark(self) -> str:
        """A mark where different code made the results, and why some are missing: "(2/3; 1 failed)"."""
        found = [MARK] if self.differing else []
        if self.missing:
            states = ", ".join(f"{count} {kind}" for kind, count in self.missing.items())
            found.append(f"({self.n}/{self.wanted}; {states})")
        return " ".join(found)


@dataclass(frozen=True)
class Table:
    """Cells of one metric under one selection rule.

    Attributes:
        rule: a selection rule, see `RULE_TEXT`.
        metric: name of the metric, percent.
        labels: rows, in order.
        columns: (dataset, ratio), in order.
        cells: (label, column) -> cell; a combination that the grid does not have is absent.
        comparison: every method against the best over all blocks.
        verdict: what the table says.
        blocks: label -> (dataset, budget, seeds) -> value, what was compared.
        seeds: all seeds asked for.
        splits: all seeds of labelled subsets; they differ from `seeds` where a grid says its `split_seeds`.
        runs: a row per run: its keys, state, value (NaN without), digest and seconds.
        results_hash: SHA-256 (hex) over the results that the means are made of; of none it means nothing.
        remarks: further sentences of the footer.
        published: published numbers beside ours; None where nobody asked for them.
    """

    rule: str
    metric: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[str, Column], TableCell]
    comparison: Comparison
    verdict: Verdict
    blocks: Mapping[str, Mapping[tuple, float]]
    seeds: tuple[int, ...]
    splits: tuple[int, ...]
    runs: pd.DataFrame
    results_hash: str
    remarks: tuple[str, ...] = ()
    published: Beside | None = None

    def title(self) -> str:
        """What the numbers are."""
        return f"{METRIC_TEXT[self.metric]} in percent on the test images"

    def notes(self, best_mark: str) -> list[str]:
        """The footer, one sentence or two per entry.

        Args:
            best_mark: how the format marks the best cell, such as "Bold".
        """
        most = max(cell.wanted for cell in self.cells.values())
        fewer = {label: cell.wanted for (label, _), cell in self.cells.items() if cell.wanted < most}
        by_plan = ", ".join(f"{label} ({count})" for label, count in sorted(fewer.items()))
        lines = [
            f"{self.title()}. Selection rule: {self.rule} ({RULE_TEXT[self.rule]}).",
            f"Mean ± standard deviation (ddof = 1) over {self._varied()}: n = {most} "
            "unless a cell says otherwise; a single value has no standard deviation."
            + (f" Fewer seeds by plan: {by_plan}." if by_plan else ""),
            f"{best_mark}: highest mean of its column among the cells without missing runs.",
            *class_notes(self.runs, "value", self.metric),
            *self.verdict.legend,
        ]
        rules = sorted(set(self.runs["peeking_rule"].dropna()))
        if rules:
            lines.append(
                f"Labelled images drawn by {', '.join(rules)}: a rule that looked at the labels of all "
                "training images, of the unlabelled ones too."
            )
        if len(self.cells) < len(self.labels) * len(self.columns):
            lines.append("n/a: not in this grid.")
        lines += notes(self.mixed(), partly_unknown(self.runs, "value"))
        lines += self.remarks
        lines += self.published.notes() if self.published else []
        lines.append(
            f"Made of {self.used} run{'s' * (self.used > 1)}, results hash sha256:{self.results_hash[:16]}."
            if self.used
            else "Made of 0 runs."
        )
        return lines

    @property
    def used(self) -> int:
        """Runs that the means are made of."""
        return int(self.runs["value"].notna().sum())

    def mixed(self) -> dict[tuple[str, Column], tuple[str, ...]]:
        """The cells whose results different code made, with what differs."""
        return {key: cell.differing for key, cell in self.cells.items() if cell.differing}

    def _varied(self) -> str:
        """What differs between the runs of a cell, for people."""
        return own_splits(self.runs) or f"seeds {_join(self.seeds)}"


def table(
    frame: pd.DataFrame,
    rule: str,
    metric: str = "mAP",
    remarks: Sequence[str] = (),
    intervals: Intervals | None = None,
) -> Table:
    """Arrange collected runs as a table.

    Args:
        frame: from `results.frames.collect`; rows and datasets keep its order, ratios rise.
        rule: a selection rule, see `RULE_TEXT`; the table holds numbers of this rule only.
        metric: mAP, OF1, CF1, head, medium or tail.
        remarks: further sentences of the footer.
        intervals: of the mAP of the same runs under the same rule; None where they were not computed.

    Returns:
        The table.

    Raises:
        StoreError: unknown rule or metric, or no wanted run.
    """
    metrics = [name for name in METRICS if name in METRIC_TEXT]
    if rule not in RULES:
        raise StoreError(f"unknown selection rule '{rule}'{nearest(rule, RULES)}")
    if metric not in metrics:
        raise StoreError(f"unknown metric '{metric}'{nearest(metric, metrics)}")
    if frame.empty:
        raise StoreError("no run is wanted, so there is no table; check the grid and its filters")
    runs = frame[
        [*COLUMNS, "state", "digest", "seconds", "peeking_rule", "made_by", "evaluated", "spec"]
    ].copy()
    runs.insert(len(COLUMNS) + 1, "value", frame[f"{rule}/{metric}"])
    labels = tuple(dict.fromkeys(runs["label"]))
    datasets = list(dict.fromkeys(runs["dataset"]))
    columns = tuple(
        sorted(
            Column.present(runs),
            key=lambda column: (datasets.index(column.dataset), column.ratio, column.budget),
        )
    )
    parted = mixed(runs, "value")
    cells: dict[tuple[str, Column], TableCell] = {}
    blocks: dict[str, dict[tuple, float]] = {label: {} for label in labels}
    for label in labels:
        for column in columns:
            selected = column.rows(runs[runs["label"] == label])
            if selected.empty:
                continue
            cells[label, column] = _cell(selected, rule, parted.get((label, column), ()))
            for split, seed, value in zip(
                selected["split_seed"], selected["seed"], selected["value"], strict=True
            ):
                if value == value:
                    block = (column.dataset, (column.ratio, column.budget), (int(split), int(seed)))
                    blocks[label][block] = float(value)
    for column in columns:
        whole = [
            (cell.mean, key)
            for key, cell in cells.items()
            if key[1] == column and not cell.missing and cell.mean is not None
        ]
        for mean, key in whole:
            if mean == max(m for m, _ in whole):
                cells[key] = TableCell(**{**cells[key].__dict__, "best": True})
    comparison = compare(blocks, LEVEL)
    differing = [f"{label} on {column.dataset} {column.share}" for label, column in parted]
    verdict = judge(comparison, runs, rule, intervals if metric == "mAP" else None, differing)
    used = runs[runs["value"].notna()]
    lines = sorted(f"{r} {d}\n" for r, d in zip(used["run_id"], used["digest"], strict=True))
    return Table(
        rule=rule,
        metric=metric,
        labels=labels,
        columns=columns,
        cells=cells,
        comparison=comparison,
        verdict=verdict,
        blocks=blocks,
        seeds=tuple(sorted({int(seed) for seed in runs["seed"]})),
        splits=tuple(sorted({int(seed) for seed in runs["split_seed"]})),
        runs=runs,
        results_hash=hashlib.sha256("".join(lines).encode()).hexdigest(),
        remarks=tuple(remarks),
    )


def _cell(runs: pd.DataFrame, rule: str, differing: Sequence[str]) -> TableCell:
    values = [float(value) for value in runs["value"] if value == value]
    counts = Counter(
        # A finished run may lack the rule: no epochs to choose from, or no held-out part.
        f"without {rule} value" if state == "done" else str(state)
        for state, value in zip(runs["state"], runs["value"], strict=True)
        if value != value
    )
    order = [f"without {rule} value", *STATES, SUPERSEDED]
    return TableCell(
        mean=statistics.fmean(values) if values else None,
        std=statistics.stdev(values) if len(values) > 1 else None,
        n=len(values),
        wanted=len(runs),
        missing={kind: counts[kind] for kind in order if counts[kind]},
        differing=tuple(differing),
    )


def own_splits(runs: pd.DataFrame) -> str:
    """Which training seeds on which splits runs have, for people; "" where the seed of each is its split's.

    Args:
        runs: rows with the columns seed and split_seed.
    """
    if (runs["seed"] == runs["split_seed"]).all():
        return ""
    seeds, splits = (tuple(sorted(set(map(int, runs[name])))) for name in ("seed", "split_seed"))
    word = "split" if len(splits) == 1 else "splits"
    return f"training seeds {_join(seeds)} on {word} {_join(splits)}"


def means_over(runs: pd.DataFrame) -> tuple[str, str]:
    """What means of runs are over, for people, and what one of their values is of; see `own_splits`."""
    splits = own_splits(runs)
    return (f"runs ({splits})", "run") if splits else ("seeds", "seed")


def _join(seeds: tuple[int, ...]) -> str:
    """1, 2, 3 -> "1–3"; 1, 4 -> "1, 4"."""
    if len(seeds) > 2 and seeds == tuple(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}–{seeds[-1]}"
    return ", ".join(map(str, seeds))
