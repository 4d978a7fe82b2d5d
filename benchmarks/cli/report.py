"""The verbs `tables`, `plots` and `why`: what the finished runs of the store say."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.cli import options
from benchmarks.plan.summary import PlanSummary
from benchmarks.workspace import Workspace


def add(verbs: options.Verbs) -> None:
    """Add the verbs."""
    shared = [options.folders(), options.grid(), options.outcome()]
    options.verb(
        verbs,
        "tables",
        tables,
        help="write and print the tables of a grid",
        examples=["tables --grid demo", "tables --grid full --ratios 0.05 --rule val --out paper"],
        parents=shared,
    )
    options.verb(
        verbs,
        "plots",
        plots,
        help="write the figures of a grid",
        examples=["plots --grid demo", "plots --grid full --methods csaa fixmatch --out paper"],
        parents=shared,
    )
    why_parser = options.verb(
        verbs,
        "why",
        why,
        help="say where a number comes from",
        examples=["why csaa/glyphscenes/0.05/1", "why 62.43"],
        parents=[options.folders()],
    )
    why_parser.add_argument(
        "run",
        help="start of a run's identity, method/dataset/ratio/seed, or a number as a table prints it",
    )


def tables(args: argparse.Namespace) -> int:
    """Write and print the tables of a grid.

    Raises:
        UserError: the grid cannot be resolved.
    """
    from benchmarks.cli.planning import summary

    print(write(summary(args), options.workspace(args), args.rule, args.out, plots=False))
    return 0


def plots(args: argparse.Namespace) -> int:
    """Write the figures of a grid and print their paths.

    Raises:
        UserError: the grid cannot be resolved.
    """
    from benchmarks.cli.planning import summary

    for path in write_figures(summary(args), options.workspace(args), args.rule, args.out):
        print(path)
    return 0


def why(args: argparse.Namespace) -> int:
    """Print everything that is stored about a run or a number.

    Raises:
        StoreError: nothing matches.
    """
    from results.why import why as explain

    print(explain(options.workspace(args).store, args.run))
    return 0


def write(plan: PlanSummary, workspace: Workspace, rule: str, out: Path | None, *, plots: bool) -> str:
    """Write the tables (and figures) of a grid.

    Args:
        plan: the runs.
        workspace: where their results lie.
        rule: selection rule.
        out: folder for tables and figures; None is `workspace.tables` and the grid's name.
        plots: whether to write the figures too.

    Returns:
        The table for a terminal, and where the files are.
    """
    from results.frames import collect
    from results.tables import table
    from results.writers import to_text, write_tables

    folder = _folder(plan, workspace, out)
    made = table(collect(workspace.store, [run.wanted() for run in plan.runs]), rule)
    paths = write_tables(made, folder)
    if plots:
        paths += write_figures(plan, workspace, rule, out)
    names = ", ".join(path.name for path in paths)
    return f"{to_text(made)}\nwritten to {folder}: {names}"


def write_figures(plan: PlanSummary, workspace: Workspace, rule: str, out: Path | None) -> list[Path]:
    """Write the figures that the finished runs allow; returns their paths."""
    from results.plots import write_plots

    wanted = [run.wanted() for run in plan.runs]
    return write_plots(workspace.store, wanted, _folder(plan, workspace, out), rule=rule)


def _folder(plan: PlanSummary, workspace: Workspace, out: Path | None) -> Path:
    return out or workspace.tables / plan.name
