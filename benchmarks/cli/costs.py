"""What `tables --costs` prints and writes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from methods.errors import UserError

if TYPE_CHECKING:
    from benchmarks.plan.summary import PlanSummary
    from benchmarks.workspace import Workspace


def add(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    parser.add_argument(
        "--costs",
        action="store_true",
        help="also what the runs cost: seconds, time an image, memory, trained parameters",
    )


def check(args: argparse.Namespace) -> None:
    """Raise UserError if the option contradicts others."""
    if args.costs and (args.grid is None or args.superseded):
        raise UserError(
            "--costs is for the present results of a grid; give --grid, and leave --superseded out"
        )


def write(
    plan: PlanSummary, workspace: Workspace, folder: Path, unwritten: Callable[[Path, OSError], Exception]
) -> None:
    """Print what the finished runs cost, and write it.

    Args:
        plan: the runs.
        workspace: where their results lie.
        folder: of the tables.
        unwritten: what is raised where the folder cannot be written to.

    Raises:
        OSError: the disk is full.
        UserError: the folder cannot be written to.
    """
    from results.costs import costs, to_markdown, write_costs
    from results.frames import finished

    found = costs(finished(workspace.store, [run.wanted() for run in plan.runs]))
    if not found:
        print("no run is finished, so there are no costs")
        return
    print(to_markdown(found), flush=True)
    try:
        paths = write_costs(found, folder)
    except OSError as error:
        raise unwritten(folder, error) from error
    print(f"written to {folder}: {', '.join(path.name for path in paths)}")
