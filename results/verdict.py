"""What a table says, in words: who leads, which methods cannot be told apart, by which question, how surely.

Two questions can be answered. *Across datasets and seeds* (`results.statistics.compare`), from six units on:
one answer for the whole table. Else *these test images, these trainings* (`results.bootstrap`), where its
intervals were computed: an answer for each column. Else nothing is said to differ, and why is said. The marks
of a table follow this verdict; `results.doubts` says what weakens it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from results.columns import Column
from results.doubts import examine
from results.intervals import Intervals, p_text
from results.statistics import FEWEST_UNITS, Comparison

if TYPE_CHECKING:
    import pandas as pd

ACROSS, HERE, UNTESTED = "across datasets and seeds", "these test images, these trainings", ""


@dataclass(frozen=True)
class Ranking:
    """Methods that were tested against each other.

    Attributes:
        column: the column of the table; None for the whole table.
        values: method -> mean score, the highest first.
        p: (higher, lower) -> adjusted p.
        level: family-wise level.
    """

    column: Column | None
    values: Mapping[str, float]
    p: Mapping[tuple[str, str], float]
    level: float

    @property
    def best(self) -> str:
        """The method with the highest mean."""
        return next(iter(self.values))

    @property
    def alike(self) -> list[tuple[str, str]]:
        """Pairs that cannot be told apart, by rank."""
        return [pair for pair, p in self.p.items() if p > self.level]

    @property
    def leading(self) -> list[str]:
        """The best, and the methods that cannot be told from it."""
        return [self.best, *(lower for higher, lower in self.alike if higher == self.best)]

    def lead(self) -> str:
        """Who leads, as a sentence."""
        where = ""
        if self.column:
            where = (
                f"On these test images and in these trainings of {self.column.dataset}, {self.column.share}: "
            )
        with_it, worse = self.leading[1:], len(self.values) - len(self.leading)
        if not worse:
            return f"{where}{self.best} is the highest, and no method can be told from it."
        others = f"the other {worse} are" if worse > 1 else "the other one is"
        if not with_it:
            return f"{where}{self.best} leads alone; {others} significantly worse."
        verb = "cannot be told from it"
        return f"{where}{self.best} leads with {_and(with_it)}, which {verb}; {others} significantly worse."

    def not_apart(self, short: bool = False) -> str:
        """The pairs that cannot be told apart, as text, or (short) their number; "" without any."""
        if not self.alike:
            return ""
        where = f"{self.column.dataset}, {self.column.share}: " if self.column else ""
        if short:
            return f"{where}{len(self.alike)} of {_count(len(self.p), 'pair')}"
        names, lower = list(self.values), dict[str, list[str]]()
        for first, second in self.alike:
            lower.setdefault(first, []).append(second)
        listed = "; ".join(f"{first} from {_runs(second, names)}" for first, second in lower.items())
        return f"{where}{len(self.alike)} of {_count(len(self.p), 'pair')} ({listed})"


@dataclass(frozen=True)
class Verdict:
    """What a table says.

    Attributes:
        question: `ACROSS`, `HERE` or `UNTESTED`.
        rankings: one over the whole table, or one for each column, or none.
        lead: sentences on who leads, or why nobody is said to.
        compared: what was tested, and how.
        more_seeds: how many more seeds would separate the leading two; "" where nothing can be said.
        weak: what weakens the answer.
        passed: checks that found nothing against it.
        legend: what the marks of the table mean, sentences of its footer.
    """

    question: str
    rankings: tuple[Ranking, ...]
    lead: tuple[str, ...]
    compared: str
    more_seeds: str
    weak: tuple[str, ...]
    passed: tuple[str, ...]
    legend: tuple[str, ...]

    def lines(self, short: bool = False) -> list[str]:
        """The verdict, a line for each thing that it says; the first one says who leads.

        Args:
            short: pairs are counted and not named, and passed checks are left out.
        """
        apart = [text for text in (ranking.not_apart(short) for ranking in self.rankings) if text]
        if self.rankings and not apart:
            apart = ["none"]
        named = " (A to B: all between them by mean, too)" if any(" to " in text for text in apart) else ""
        parts = (
            ("Compared", self.compared),
            (f"Cannot be told apart{named}", "; ".join(apart)),
            ("More seeds", self.more_seeds),
            ("What weakens the answer", "; ".join(self.weak)),
            ("Checks passed", "" if short else "; ".join(self.passed)),
        )
        return [f"Verdict: {' '.join(self.lead)}", *(f"{name}: {text}." for name, text in parts if text)]

    def mark(self, label: str, column: Column | None = None) -> str:
        """A dagger for a method that cannot be told from the best of the table, or of a column; else ""."""
        for ranking in self.rankings:
            if ranking.column == column and label in ranking.leading[1:]:
                return "†"
        return ""

    def p(self, label: str, column: Column) -> float | None:
        """The adjusted p of a method against the best; None for the best and for what was not tested."""
        for ranking in self.rankings:
            if ranking.column in (None, column):
                return ranking.p.get((ranking.best, label))
        return None


def judge(
    comparison: Comparison,
    runs: pd.DataFrame,
    rule: str,
    intervals: Intervals | None = None,
    differing: Sequence[str] = (),
) -> Verdict:
    """The verdict of a table.

    Args:
        comparison: of its methods over all blocks.
        runs: a row per wanted run, see `results.tables.Table`.
        rule: selection rule of the table.
        intervals: of the same runs and rule; None where they were not computed.
        differing: cells whose results different code made.
    """
    unit = unit_name(runs)
    rankings: list[Ranking] = []
    question = UNTESTED
    if comparison.decided:
        question, rankings = ACROSS, [_across(comparison)]
        compared = _compared_across(comparison, unit)
    else:
        rankings = _here(comparison.level, intervals) if intervals else []
        question = HERE if rankings else UNTESTED
        compared = _compared_here(rankings, intervals, comparison, unit) if rankings and intervals else ""
    if rankings:
        lead = [ranking.lead() for ranking in rankings]
    else:
        lead = ["no method is said to lead.", f"{_why_not(comparison, unit)}.", _no_intervals(intervals)]
    weak, passed = examine(comparison, runs, rule, question == HERE, intervals, differing)
    return Verdict(
        question,
        tuple(rankings),
        tuple(lead),
        compared,
        _more_seeds(comparison),
        tuple(weak),
        tuple(passed),
        tuple(_legend(question, rankings, comparison, unit)),
    )


def unit_name(runs: pd.DataFrame) -> str:
    """What a unit of the test across datasets and seeds is, for people."""
    own = (runs["seed"] != runs["split_seed"]).any()
    return f"dataset × {'split × seed' if own else 'seed'}"


def _across(comparison: Comparison) -> Ranking:
    # The best comes first of those whose means are equal up to rounding.
    names = sorted(comparison.means, key=lambda name: (name != comparison.best, -comparison.means[name]))
    return _ranking(
        None, {name: comparison.means[name] for name in names}, comparison.pair_p_values, comparison.level
    )


def _here(level: float, intervals: Intervals) -> list[Ranking]:
    values: dict[Column, dict[str, float]] = {}
    for row in intervals.rows:
        values.setdefault(Column(row.dataset, row.ratio, row.budget), {})[row.label] = row.value
    p: dict[Column, dict[tuple[str, str], float]] = {}
    for pair in intervals.pairs:
        p.setdefault(Column(pair.dataset, pair.ratio, pair.budget), {})[pair.first, pair.second] = pair.p
    return [
        _ranking(column, dict(sorted(found.items(), key=lambda item: -item[1])), p[column], level)
        for column, found in values.items()
        if len(found) > 1
    ]


def _ranking(
    column: Column | None, values: Mapping[str, float], p: Mapping[tuple[str, str], float], level: float
) -> Ranking:
    names = list(values)
    ordered = {
        (higher, lower): p[higher, lower] if (higher, lower) in p else p[lower, higher]
        for place, higher in enumerate(names)
        for lower in names[place + 1 :]
    }
    return Ranking(column, values, ordered, level)


def _legend(question: str, rankings: Sequence[Ranking], comparison: Comparison, unit: str) -> list[str]:
    if question == ACROSS:
        (ranking,) = rankings
        best = ranking.best
        p = "; ".join(f"{lower} {p_text(p)}" for (higher, lower), p in ranking.p.items() if higher == best)
        lines = [
            f"†: not significantly worse than {best}, the best over the {_units(comparison, unit)} that all "
            f"tested methods have. Adjusted p: {p}."
        ]
        if comparison.more_seeds:
            more = "; ".join(f"{name} {_seeds(count)}" for name, count in comparison.more_seeds.items())
            lines.append(f"About how many more seeds would tell them apart (power 80 %): {more}.")
        return lines
    if any(ranking.leading[1:] for ranking in rankings):
        return ["†: cannot be told from the highest mean of its column (test images, trainings: these)."]
    return []


def _units(comparison: Comparison, unit: str) -> str:
    units = f"{comparison.units} {unit} units"
    if comparison.blocks != comparison.units:
        units += f" ({comparison.blocks} cells, averaged over the labelled shares)"
    return units


def _compared_across(comparison: Comparison, unit: str) -> str:
    pairs = len(comparison.pair_p_values)
    return (
        f"question (b), {ACROSS}: {len(comparison.means)} methods, {_count(pairs, 'pair')}, over the "
        f"{_units(comparison, unit)} that all tested methods have (paired sign-flip test of all pairs, "
        f"step-down max-T, family-wise level {comparison.level:g})"
    )


def _compared_here(
    rankings: Sequence[Ranking], intervals: Intervals, comparison: Comparison, unit: str
) -> str:
    columns = {ranking.column for ranking in rankings}
    rows = [row for row in intervals.rows if Column(row.dataset, row.ratio, row.budget) in columns]
    seeds, images = ({getattr(row, name) for row in rows} for name in ("seeds", "images"))
    methods = {len(ranking.values) for ranking in rankings}
    return (
        f"question (a), {HERE}, each column for itself: {_range(methods, 'method')}, "
        f"{_range({len(ranking.p) for ranking in rankings}, 'pair')}, {_range(seeds, 'seed')}, "
        f"{_range(images, 'test image')} (paired bootstrap over seeds and images, {intervals.resamples:,} "
        f"resamples, step-down max-T, family-wise level {comparison.level:g} within a column). "
        f"Question (b), {ACROSS}, is not answered: {_why_not(comparison, unit, short=True)}"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _range(numbers: set[int], what: str) -> str:
    low, high = min(numbers), max(numbers)
    return _count(low, what) if low == high else f"{low:,} to {_count(high, what)}"


def _runs(some: Sequence[str], ranked: Sequence[str]) -> str:
    """Some of ranked methods, by rank; three and more that follow each other as "first to last"."""
    runs: list[list[str]] = []
    for name in sorted(some, key=ranked.index):
        if runs and ranked.index(runs[-1][-1]) + 1 == ranked.index(name):
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs)


def _why_not(comparison: Comparison, unit: str, short: bool = False) -> str:
    """Why there is no test across datasets and seeds, without a full stop."""
    if not comparison.best:
        # `compare` names no best for either reason; methods that are left out may share results.
        text = (
            "there is no cell and seed in which all tested methods have a result"
            if len(comparison.methods) - len(comparison.left_out) > 1
            else "fewer than two methods have results enough for it (in half of the cells × seeds that any "
            "method has)"
        )
        return text if short else f"No significance test: {text}"
    units = f"share {_units(comparison, unit)}, and a verdict needs {FEWEST_UNITS}"
    if short:
        return f"all tested methods {units}"
    return f"No significance marks: all tested methods, with {comparison.best} the best of them, {units}"


def _no_intervals(intervals: Intervals | None) -> str:
    if intervals is None:
        return (
            "Differences on these test images and in these trainings were not tested, because no intervals "
            "were computed (run.py tables --intervals)."
        )
    return "Nor is there a column in which two methods have intervals."


def _more_seeds(comparison: Comparison) -> str:
    """How many more seeds would tell the leading two apart across datasets and seeds."""
    if len(comparison.means) < 2:
        return ""
    ranking = _across(comparison)
    best, second = list(ranking.values)[:2]
    if ranking.p[best, second] <= comparison.level:
        return f"the leading two, {best} and {second}, are told apart already"
    each = " of every dataset" if comparison.datasets > 1 else ""
    if second not in comparison.more_seeds:
        return (
            f"how many would tell the leading two, {best} and {second}, apart cannot be said from one unit, "
            "which has no spread"
        )
    count = comparison.more_seeds[second]
    number = _seeds(count) if count is None else f"about {count}"
    return (
        f"{number} more{each} would tell the leading two, {best} and {second}, apart across datasets and "
        f"seeds (power 80 %, if the present means and spread of {_count(comparison.units, 'unit')} are the "
        "true ones)"
    )


def _seeds(count: int | None) -> str:
    return "over 1,000" if count is None else str(count)


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
