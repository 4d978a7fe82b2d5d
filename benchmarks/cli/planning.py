"""From the command line's grid to its plan, remembered where nothing has changed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.cli.options import load_grid, workspace
from benchmarks.plan import remembered
from benchmarks.plan.summary import PlanSummary
from benchmarks.progress import Progress

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
    workers = args.workers or min(os.cpu_count() or 1, 8)

    def resolve(announce: Callable[[str], None]) -> tuple[Grid, list[Job]]:
        from benchmarks.plan import jobs

        grid = load_grid(args)
        return grid, jobs.resolve(grid, place, progress=counter, workers=workers, announce=announce)

    return remembered.resolved(_question(args), place, resolve, announce)


def recalled(args: argparse.Namespace) -> PlanSummary | None:
    """The summary of the remembered plan; None where it has to be resolved."""
    return remembered.recall(_question(args), workspace(args))


def summary(args: argparse.Namespace) -> PlanSummary:
    """The summary of the plan, which is resolved only if something has changed.

    Raises:
        UserError: see `resolved`.
    """
    return recalled(args) or resolved(args, Progress().counter)[2]


def _question(args: argparse.Namespace) -> remembered.Question:
    return remembered.Question(args.grid, args.ratios, args.seeds, args.methods, args.strategy)
