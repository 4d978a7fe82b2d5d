"""Which stored results are superseded, and by which runs; see `results.moves` for when they are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.errors import StoreError
from results.files import folders
from results.moves import LEDGER, Change, changes, flat
from results.schema import Result
from results.store import RunStore

if TYPE_CHECKING:
    import pandas as pd

SUPERSEDED = "superseded"
"""The state, in tables and `status`, of a run that was not begun and has a superseded result."""
_TELLING = ("split_digest", "seed", "ratio", "method")
"""Fields that never move, and tell most runs of a folder apart."""


@dataclass(frozen=True)
class Predecessor:
    """A superseded result.

    Attributes:
        directory: of the run that has it.
        run_id: of that run.
        by: identity of the run that supersedes it.
        changes: the fields in which the two differ.
        finished: when it was made.
    """

    directory: Path
    run_id: str
    by: str
    changes: tuple[Change, ...]
    finished: str

    def line(self) -> str:
        """Which result, by what it is superseded, and what differs."""
        fields = ", ".join(change.field for change in self.changes)
        return f"[{self.run_id[:8]}] superseded by [{self.by[:8]}], differs in {fields}"


def predecessors(store: RunStore, wanted: Sequence[Mapping[str, Any]]) -> dict[str, list[Predecessor]]:
    """The superseded results of runs that are wanted.

    A result is one of the wanted runs that differ from it in the fewest fields.

    Args:
        store: where the results are.
        wanted: runs as `results.frames` wants them, each with its identity as "spec"; a run whose spec is
            empty (not known) has no predecessor.

    Returns:
        By identity of the wanted run, the newest first; runs without one are absent.
    """
    by_folder: dict[Path, dict[str, Mapping[str, Any]]] = {}
    for item in wanted:
        if item.get("spec"):
            where = store.directory(item["run_id"], {**item, "dataset": {"alias": item["dataset"]}})
            by_folder.setdefault(where.parent, {})[item["run_id"]] = item["spec"]
    names = {str(item["run_id"])[:16] for item in wanted}
    found: dict[str, list[Predecessor]] = {}
    for folder, specs in by_folder.items():
        for run in _finished(folder):
            if run.name.rsplit("-", 1)[-1] not in names:
                for one in _successors(store, run, specs):
                    found.setdefault(one.by, []).append(one)
    for some in found.values():
        some.sort(key=lambda one: (one.finished, one.run_id), reverse=True)
    return found


def successor(
    store: RunStore, run: Path, result: Result, planned: Iterable[tuple[str, Mapping[str, Any]]] = ()
) -> Predecessor | None:
    """What supersedes a result: a run of a plan, or one of the store.

    Args:
        store: where the result is.
        run: its directory.
        result: what it holds.
        planned: identities and specs of planned runs.
    """
    specs = {run_id: spec for run_id, spec in planned if spec}
    for other in map(Path, sorted(folders(str(run.parent)))):
        known = other.name.rsplit("-", 1)[-1]
        if other != run and not any(run_id.startswith(known) for run_id in specs):
            with suppress(StoreError):  # not begun, or damaged, which hides nothing of this run
                specs[known] = store.spec(other)
    return next(iter(_successors(store, run, specs, result)), None)


def reasons(found: Iterable[Predecessor]) -> list[str]:
    """Why results are superseded, a line for each reason: how many of them, in which fields, and why."""
    fields: dict[str, dict[str, None]] = {}
    counts: dict[str, int] = {}
    for one in found:
        for reason in dict.fromkeys(change.reason for change in one.changes):
            counts[reason] = counts.get(reason, 0) + 1
        for change in one.changes:
            fields.setdefault(change.reason, {})[change.field] = None
    return [f"{count} in {', '.join(fields[reason])}: {reason}" for reason, count in counts.items()]


def moves_since(result: Mapping[str, Any]) -> list[str]:
    """What has moved since a result was made, a reason each; a result of today's identities has none."""
    generation, spec = result.get("identities", 1), flat(result["spec"])
    return [
        f"{move.reason} ({move.date})"
        for move in LEDGER
        if move.generation > generation
        and (not move.methods or spec["method"] in move.methods)
        and move.concerned(spec)
    ]


def outdated(store: RunStore, runs: Iterable[Path]) -> str:
    """A sentence on the results of earlier versions among some runs; "" for none.

    The runs of a plan that was remembered by an earlier version have such results.
    """
    moved: dict[str, None] = {}
    count = 0
    for run in runs:
        result = store.read(run)[1]
        if result is not None and (some := moves_since(result)):
            count += 1
            moved |= dict.fromkeys(some)
    if not count:
        return ""
    return (
        f"SUPERSEDED: {count} of the results here are of an earlier version, and today's version gives other "
        f"identities: {'; '.join(moved)}."
    )


def note(found: Mapping[str, list[Predecessor]]) -> str:
    """How many superseded results there are and why, for a table's footer; "" for none."""
    count = sum(map(len, found.values()))
    if not count:
        return ""
    fields: dict[str, None] = {}
    for some in found.values():
        for one in some:
            fields |= dict.fromkeys(change.field for change in one.changes)
    return (
        f"Superseded, and in no cell: {count} result{'s' * (count > 1)} of earlier versions (moved: "
        f"{', '.join(sorted(fields))}); `tables --superseded` prints them, `why RUN` says what differs."
    )


def mark(frame: pd.DataFrame, found: Mapping[str, list[Predecessor]]) -> pd.DataFrame:
    """The frame of `results.frames.collect` with the state `SUPERSEDED` where it holds.

    Only a run that was not begun has it: of another, its own state says more.
    """
    frame = frame.copy()
    here = (frame["state"] == "not started") & frame["run_id"].isin(found)
    frame.loc[here, "state"] = SUPERSEDED
    return frame


def as_wanted(
    wanted: Sequence[Mapping[str, Any]], found: Mapping[str, list[Predecessor]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The superseded results in place of the runs that supersede them, for a table of their own.

    Results that differ from their successors in other ways were made in other ways, and are never averaged:
    each way is a row.

    Returns:
        Wanted runs, whose labels say that they are superseded; and a line on each way, for the footer.
    """
    ways: dict[str, list[tuple[tuple[str, str], ...]]] = {}
    items: list[tuple[dict[str, Any], tuple[str, int]]] = []
    counts: dict[tuple[str, int], int] = {}
    for item in wanted:
        label = str(item["label"])
        seen = set()
        for one in found.get(item["run_id"], ()):
            way = tuple((change.field, _kind(change)) for change in one.changes)
            if way in seen:  # an older result of the same way
                continue
            seen.add(way)
            known = ways.setdefault(label, [])
            if way not in known:
                known.append(way)
            row = (label, known.index(way))
            counts[row] = counts.get(row, 0) + 1
            items.append(({**item, "run_id": one.run_id}, row))
    names = {
        row: f"{row[0]} (superseded{f', {row[1] + 1}' if len(ways[row[0]]) > 1 else ''})" for row in counts
    }
    same: dict[tuple[tuple[str, str], ...], list[tuple[str, int]]] = {}
    for row in names:
        same.setdefault(ways[row[0]][row[1]], []).append(row)
    lines = [
        f"{', '.join(names[row] for row in rows)}: {sum(counts[row] for row in rows)} runs, superseded in "
        + "; ".join(f"{field} ({kind})" for field, kind in way)
        for way, rows in same.items()
    ]
    return [{**item, "label": names[row]} for item, row in items], lines


def _kind(change: Change) -> str:
    """A change in words that are equal for equal ways; hashes differ from run to run."""
    text = str(change).removeprefix(f"{change.field} ")
    return "another hash" if "…" in text else text


def _finished(folder: Path) -> list[Path]:
    try:
        found = sorted(folders(str(folder)))
    except OSError:  # its runs are unreadable, which their states say
        return []
    return [Path(run) for run in found if os.path.exists(os.path.join(run, "result.json"))]


def _successors(
    store: RunStore, run: Path, specs: Mapping[str, Mapping[str, Any]], result: Result | None = None
) -> list[Predecessor]:
    """The nearest of the runs that supersede a result."""
    try:
        old = result["spec"] if result else _spec(store, run)
        # From the small file first, as if it were of the first generation: most siblings are other runs.
        likely = {
            run_id: spec
            for run_id, spec in specs.items()
            if all(spec.get(field) == old.get(field) for field in _TELLING) and changes(old, spec, 1)
        }
        if not likely:
            return []
        result = result or store.load(run)
    except StoreError:  # a damaged file of another run hides no table; `why` names it
        return []
    generation = result.get("identities", 1)
    found = [
        Predecessor(run, result["run_id"], run_id, some, result["finished"])
        for run_id, spec in likely.items()
        if (some := changes(old, spec, generation))
    ]
    nearest = min((len(one.changes) for one in found), default=0)
    return [one for one in found if len(one.changes) == nearest]


def _spec(store: RunStore, run: Path) -> Mapping[str, Any]:
    try:
        return store.spec(run)
    except StoreError:  # its result holds the same
        return store.load(run)["spec"]
