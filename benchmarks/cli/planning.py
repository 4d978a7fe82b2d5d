"""From the command line's grid to its plan."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.cli.options import load_grid, workspace
from benchmarks.plan.summary import PlanSummary
from benchmarks.progress import Progress

if TYPE_CHECKING:
    from benchmarks.plan.grid import Grid
    from benchmarks.plan.jobs import Job

Counter = Callable[[str], Callable[[int, int], None]]


def resolved(
    args: argparse.Namespace, counter: Counter, announce: Callable[[str], None] = lambda line: None
) -> tuple[Grid, list[Job], PlanSummary]:
    """The grid, its jobs and their summary; datasets are opened and prepared.

    Args:
        args: the command line.
        counter: makes a (done, total) callback from a title.
        announce: gets one-line remarks on the preparation.

    Raises:
        UserError: a wrong grid file, absent data or weights.
    """
    from benchmarks.plan.jobs import remarks, resolve

    grid, place = load_grid(args), workspace(args)
    workers = args.workers or min(os.cpu_count() or 1, 8)
    jobs = resolve(grid, place, progress=counter, workers=workers, announce=announce)
    return grid, jobs, PlanSummary.of(grid.name, jobs, place, remarks(jobs))


def summary(args: argparse.Namespace) -> PlanSummary:
    """The summary of the plan alone."""
    return resolved(args, Progress().counter)[2]
