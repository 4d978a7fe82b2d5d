"""What `tables --intervals` computes, prints and keeps."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.plan.summary import PlanSummary
from benchmarks.progress import Progress
from benchmarks.workspace import Workspace

if TYPE_CHECKING:
    from results.intervals import Intervals


def write(
    plan: PlanSummary,
    workspace: Workspace,
    rule: str,
    folder: Path,
    unwritten: Callable[[Path, OSError], Exception],
) -> Intervals:
    """Compute, print and keep intervals of a grid's scores; what has not changed is taken from the files.

    The files are written after every column, so that a call that is stopped goes on there.

    Args:
        plan: the runs.
        workspace: where their results lie.
        rule: selection rule.
        folder: of the tables.
        unwritten: what is raised where the folder cannot be written to.

    Returns:
        The intervals.

    Raises:
        OSError: the disk is full.
        StoreError: the rule's scores are not stored.
        UserError: the folder cannot be written to.
    """
    from results import intervals
    from results.files import atomic_write_bytes

    path, pairs = (folder / f"mAP-{rule}-intervals{end}.csv" for end in ("", "-pairs"))
    progress = Progress()

    def keep(found: Intervals) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(path, intervals.to_csv(found.rows, intervals.Row).encode())
            atomic_write_bytes(pairs, intervals.to_csv(found.pairs, intervals.Pair).encode())
        except OSError as error:
            raise unwritten(folder, error) from error

    found = intervals.compute(
        workspace.store,
        [run.wanted() for run in plan.runs],
        rule,
        intervals.Intervals(
            intervals.from_csv(path, intervals.Row), intervals.from_csv(pairs, intervals.Pair)
        ),
        say=lambda line: print(f"remark: {line}", file=sys.stderr),
        counter=progress.counter,
        keep=keep,
    )
    keep(found)
    print(intervals.to_text(found), flush=True)
    print(f"written to {folder}: {path.name}, {pairs.name}\n", flush=True)
    return found
