"""Which cells of written tables changed, and by how much: `tables --diff OLD NEW`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from results.columns import percent
from results.damage import read_csv, refused
from results.errors import StoreError, nearest
from results.text import one_line, terminal

NEEDED = ("dataset", "ratio", "label", "metric", "rule", "mean", "std", "n", "wanted", "missing")
"""Columns that a table of cells has in every version; `budget` came later."""
AGAIN = "write the table again"
SAME = 1e-9
"""Means that differ by less, in points, are sums in another order."""


class Place(NamedTuple):
    """Where a cell stands; ``budget`` is "" where the share is the budget."""

    metric: str
    rule: str
    dataset: str
    ratio: float
    budget: str
    label: str


@dataclass(frozen=True)
class Cell:
    """A cell as a table's CSV has it.

    Attributes:
        mean: in percent; None without a value.
        std: None with fewer than two values.
        n: runs with a value.
        wanted: runs that were asked for.
        missing: states of the others, as text.
    """

    mean: float | None
    std: float | None
    n: int
    wanted: int
    missing: str

    def __str__(self) -> str:
        if self.mean is None:
            number = "–"
        else:
            number = f"{self.mean:.2f}" if self.std is None else f"{self.mean:.2f} ± {self.std:.2f}"
        rest = f"; {self.missing}" if self.missing else ""
        return f"{number} ({self.n}/{self.wanted}{rest})"

    def equals(self, other: Cell) -> bool:
        """Whether two cells say the same."""
        numbers = ((self.mean, other.mean), (self.std, other.std))
        counts = (self.n, self.wanted, self.missing) == (other.n, other.wanted, other.missing)
        return counts and all(
            a == b or (a is not None and b is not None and abs(a - b) < SAME) for a, b in numbers
        )


@dataclass(frozen=True)
class Difference:
    """What has happened to one cell; ``old`` or ``new`` is None where there is no such cell."""

    place: Place
    old: Cell | None
    new: Cell | None

    @property
    def points(self) -> float | None:
        """New mean minus old mean, in points; None where one is missing."""
        if self.old is None or self.new is None or self.old.mean is None or self.new.mean is None:
            return None
        return self.new.mean - self.old.mean


def tables(path: Path) -> dict[str, dict[Place, Cell]]:
    """The tables of cells in a folder, or the one of a file.

    Args:
        path: a CSV file as `results.writers.to_csv` writes it, or a folder with some. Other CSV files of the
            folder (a row per run, say) are left alone; folders in it are not opened.

    Returns:
        By file name: the cells by place.

    Raises:
        StoreError: there is nothing, or a file is damaged; file and line are named.
    """
    if not path.is_dir():
        try:
            found = _read(path, must=True)
        except FileNotFoundError:
            raise StoreError(f"{path}: there is no such folder or file") from None
        return {path.name: found or {}}
    try:
        files = sorted(file for file in path.iterdir() if file.suffix == ".csv")
    except OSError as error:
        raise StoreError(refused(path, error)) from None
    made = {file.name: cells for file in files if (cells := _read(file, must=False)) is not None}
    if not made:
        raise StoreError(f"{path}: no table; a folder that `tables --out` wrote has <metric>-<rule>.csv")
    return made


def _read(path: Path, *, must: bool) -> dict[Place, Cell] | None:
    lines = read_csv(path, AGAIN)
    head = lines[0] if lines else []
    absent = [name for name in NEEDED if name not in head]
    if absent:
        # The tables of other kinds that stand in such a folder have none of these three.
        if must or not head or {"mean", "wanted", "missing"}.intersection(head):
            raise StoreError(f"{path}: no table of cells, it has no column {', '.join(absent)}")
        return None
    cells: dict[Place, Cell] = {}
    for number, values in enumerate(lines[1:], start=2):
        where = f"{path}, line {number}"
        if len(values) != len(head):
            raise StoreError(f"{where}: {len(values)} fields instead of {len(head)}; {AGAIN}")
        row = dict(zip(head, values, strict=True))
        place = Place(
            row["metric"],
            row["rule"],
            row["dataset"],
            _number(row, "ratio", where) or 0.0,
            row.get("budget", ""),
            row["label"],
        )
        if place in cells:
            raise StoreError(f"{where}: a second line for {_title(place)}; {AGAIN}")
        cells[place] = Cell(
            _number(row, "mean", where),
            _number(row, "std", where),
            int(_number(row, "n", where) or 0),
            int(_number(row, "wanted", where) or 0),
            row["missing"],
        )
    return cells


def _number(row: Mapping[str, str], name: str, where: str) -> float | None:
    if not row[name]:
        return None
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise StoreError(f"{where}: {name} is {one_line(row[name])!r}, which is no number; {AGAIN}")
    return value


def between(old: Path, new: Path) -> tuple[list[Difference], int, list[str]]:
    """What changed between two tables, or between the tables of two folders.

    Args:
        old: a folder or a CSV file.
        new: of the same kind. Files of folders are compared with those of the same name.

    Returns:
        The cells that changed, were added or are gone, those of the old table first; how many cells both
        have without a change; a line on each file that only one folder has.

    Raises:
        StoreError: see `tables`; a folder and a file; or two folders without a file in common.
    """
    if old.is_dir() != new.is_dir() and old.exists() and new.exists():
        raise StoreError(f"{old} and {new}: one is a folder, the other a file; give two of a kind")
    before, after = tables(old), tables(new)
    if not old.is_dir():
        return *_changes(next(iter(before.values())), next(iter(after.values()))), []
    common = [name for name in before if name in after]
    if not common:
        name = next(iter(before))
        raise StoreError(f"{old} and {new} have no table of the same name: {name}{nearest(name, after)}")
    found: list[Difference] = []
    same = 0
    for name in common:
        changes, equal = _changes(before[name], after[name])
        found += changes
        same += equal
    alone = [(name, old) for name in before if name not in after]
    alone += [(name, new) for name in after if name not in before]
    return found, same, [f"only in {folder}: {name}" for name, folder in alone]


def _changes(old: Mapping[Place, Cell], new: Mapping[Place, Cell]) -> tuple[list[Difference], int]:
    places = dict.fromkeys([*old, *new])
    found = []
    for place in places:
        before, after = old.get(place), new.get(place)
        if before is None or after is None or not before.equals(after):
            found.append(Difference(place, before, after))
    return found, len(places) - len(found)


def to_text(found: Sequence[Difference], same: int, remarks: Sequence[str]) -> str:
    """What `between` returns, as a table for a terminal, the largest change named below it."""
    from tabulate import tabulate

    lines = []
    if found:
        rows = [
            [
                terminal(each.place.label),
                f"{terminal(each.place.dataset)} {each.place.budget or percent(each.place.ratio)}",
                f"{each.place.metric}, {each.place.rule}",
                "no such cell" if each.old is None else str(each.old),
                "no such cell" if each.new is None else str(each.new),
                "" if each.points is None else _points(each.points),
            ]
            for each in found
        ]
        head = ["method", "cell", "number", "old", "new", "change"]
        body = tabulate(rows, head, tablefmt="simple", disable_numparse=True)
        lines += [*(line.rstrip() for line in body.splitlines()), ""]
    changed = sum(each.old is not None and each.new is not None for each in found)
    added = sum(each.old is None for each in found)
    gone = sum(each.new is None for each in found)
    word = "cell" if changed == 1 else "cells"
    lines.append(f"{changed} {word} changed, {added} added, {gone} gone, {same} unchanged.")
    moved = [each for each in found if each.points]
    if moved:
        most = max(moved, key=lambda each: abs(each.points or 0.0))
        lines.append(f"Largest change of a mean: {_points(most.points or 0.0)} points, {_title(most.place)}.")
    return "\n".join([*lines, *map(one_line, remarks)])


def _points(value: float) -> str:
    """A change in points; one that two decimals do not show has an exponent."""
    return f"{value:+.2f}" if abs(value) >= 0.005 or value == 0 else f"{value:+.0e}"


def _title(place: Place) -> str:
    share = place.budget or percent(place.ratio)
    return one_line(f"{place.label} on {place.dataset} {share} ({place.metric}, {place.rule})")
