"""What `plan` and `--dry-run` print: a grid as a matrix of states, and what is left of it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tabulate import tabulate

from benchmarks.plan.summary import PlanSummary, counted
from benchmarks.workspace import Workspace
from results.columns import subset_name

if TYPE_CHECKING:
    from benchmarks.plan.outlook import Outlook

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Entry:
    """A run of the matrix.

    Attributes:
        dataset: its name in tables.
        column: which labelled subset, such as "p=0.05".
        label: its row.
        state: done, running, dead, failed, not started, superseded or unknown.
        hours: estimated hours of what is left of it, on one group of processes; None if not known.
        title: its name for people.
    """

    dataset: str
    column: str
    label: str
    state: str
    hours: float | None
    title: str


def entries(outlook: Outlook, workspace: Workspace, processes: int) -> tuple[list[Entry], str]:
    """The runs of a grid with the hours of those that are left, and a line on its shared stages.

    Args:
        outlook: what is known of the grid.
        workspace: where measurements lie.
        processes: processes that train each run together.
    """
    from benchmarks.launch.estimate import Estimates
    from benchmarks.plan.outlook import column, title

    estimates = Estimates(workspace, processes=processes)
    found = []
    left = iter(outlook.jobs)
    for cell, state in zip(outlook.grid.cells, outlook.states, strict=True):
        job = None if state == UNKNOWN else next(left)
        seconds = 0.0 if state == "done" else None
        if job is not None and state != "done":
            seconds = estimates.run(job).seconds
        found.append(
            Entry(
                cell.dataset.alias,
                column(cell),
                cell.label,
                state,
                None if seconds is None else seconds / 3600,
                title(cell) if job is None else job.spec.title,
            )
        )
    stages = {stage: job for job in outlook.jobs for stage in job.stages}
    waiting = {stage: job for stage, job in stages.items() if not stage.is_done(workspace)}
    if not waiting:
        return found, ""
    times = [estimates.stage(stage, job).seconds for stage, job in waiting.items()]
    cost = hours([None if each is None else each / 3600 for each in times])
    return found, f"{len(waiting)} of {len(stages)} shared stages are to be made first, hours: {cost}"


def overview(outlook: Outlook, workspace: Workspace) -> str:
    """One line: the grid's runs by state, and its shared stages as far as they are known."""
    if outlook.is_complete:
        return outlook.summary.overview(workspace)
    name, runs = outlook.grid.name, len(outlook.states)
    return f"grid {name}: {runs} runs ({counted(outlook.states)}), shared stages unknown"


def entries_of(summary: PlanSummary, workspace: Workspace) -> list[Entry]:
    """The runs of a plan that is done: nothing is left that costs something."""
    return [
        Entry(
            run.dataset,
            subset_name(run.ratio, run.budget),
            run.label,
            kind,
            0.0 if kind == "done" else None,
            run.title,
        )
        for run, kind in summary.standing(workspace).items()
    ]


def text(entries: Sequence[Entry]) -> str:
    """A table for each dataset: a row for each method, a column for each labelled subset, and the cost.

    A cell counts the runs (seeds) by state. The cost is that of what is left to run.
    """
    blocks = []
    for dataset in dict.fromkeys(entry.dataset for entry in entries):
        here = [entry for entry in entries if entry.dataset == dataset]
        columns = list(dict.fromkeys(entry.column for entry in here))
        rows = []
        for label in dict.fromkeys(entry.label for entry in here):
            mine = [entry for entry in here if entry.label == label]
            cells = [counted([e.state for e in mine if e.column == column]) for column in columns]
            rows.append([label, *cells, hours([e.hours for e in mine])])
        blocks.append(
            tabulate(rows, [dataset, *columns, "hours left"], tablefmt="simple", disable_numparse=True)
        )
    return "\n\n".join(blocks)


def hours(known: Sequence[float | None]) -> str:
    """The sum of hours; what is not known of it is said."""
    total, unknown = sum(each for each in known if each is not None), known.count(None)
    if unknown == len(known):
        return UNKNOWN
    shown = "0" if not total else "<0.01" if total < 0.005 else f"{total:.2f}"
    return f"{shown} + {unknown} unknown" if unknown else shown
