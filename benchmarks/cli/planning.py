"""From the command line's grid to its plan, remembered where nothing has changed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.cli.options import load_grid, workspace
from benchmarks.plan import earlier, remembered
from benchmarks.plan.summary import PlanSummary
from benchmarks.progress import silent
from benchmarks.provenance import cores
from benchmarks.workspace import Workspace
from methods.errors import UserError

if TYPE_CHECKING:
    from benchmarks.plan.grid import Grid
    from benchmarks.plan.jobs import Job

Counter = Callable[[str], Callable[[int, int], None]]


def resolved(
    args: argparse.Namespace, counter: Counter, announce: Callable[[str], None] = lambda line: None
) -> tuple[Grid, list[Job], PlanSummary]:
    """The grid, its jobs and their summary; datasets are opened and prepared, the plan is remembered.

    Args:
        args: the command line.
        counter: makes a (done, total) callback from a title.
        announce: gets one-line remarks on the preparation.

    Raises:
        UserError: a wrong grid file, absent data or weights.
    """
    place = workspace(args)
    workers = args.workers or min(cores(), 8)

    def resolve(announce: Callable[[str], None]) -> tuple[Grid, list[Job]]:
        from benchmarks.plan import jobs

        grid = load_grid(args)
        return grid, jobs.resolve(grid, place, progress=counter, workers=workers, announce=announce)

    return remembered.resolved(_question(args), place, resolve, announce)


def recalled(args: argparse.Namespace) -> PlanSummary | None:
    """The summary of the remembered plan; None where it has to be resolved."""
    return remembered.recall(_question(args), workspace(args))


def known(args: argparse.Namespace, remark: Callable[[str], None]) -> PlanSummary:
    """The summary of the plan for tables, figures and `status`, which prepare, download and render nothing.

    Where something has changed the plan is resolved; if that is not possible here, the newest remembered
    plan is taken as it is.

    Args:
        args: the command line.
        remark: gets one line where the plan may be another than the grid's today, with the reason.

    Raises:
        UserError: a wrong grid file; or the runs are not known: nothing is remembered, and data are absent
            or not prepared.
    """
    fresh = recalled(args)
    if fresh is not None:
        return fresh
    place = workspace(args)
    found = earlier.newest(_question(args), place)
    if found is not None and found.absent:
        remark(found.remark())
        return found.plan
    from benchmarks.plan import jobs

    grid = load_grid(args)
    try:
        unprepared = jobs.uncached(grid, place)
        if unprepared:
            raise UserError(f"not prepared: {', '.join(unprepared)}")
        return resolved(args, silent)[2]
    except UserError as error:
        reason = "; ".join(str(error).splitlines())
        if found is None:
            raise UserError(
                f"{reason}; and no plan of grid {args.grid} is remembered in "
                f"{place.runs / remembered.FOLDER}, so its runs are not known: "
                "`prepare` it and ask for its `status` where the data are; `tables` without "
                "--grid prints all that is finished"
            ) from None
        remark(f"{found.remark()}; it cannot be made anew: {reason}")
        return found.plan


def _question(args: argparse.Namespace) -> remembered.Question:
    return remembered.Question(
        args.grid, args.ratios, args.seeds, args.methods, args.strategy, args.split_seeds
    )


def planned_specs(workspace: Workspace) -> list[tuple[str, dict[str, Any]]]:
    """Identities and specs of all runs of the plans that are remembered, those of the newest plan first."""
    return [(run.run_id, run.spec) for plan in earlier.every(workspace) for run in plan.runs if run.spec]
