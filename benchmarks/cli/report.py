"""Tables and figures of a grid, from the run store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.plan.grid import Grid
from benchmarks.plan.jobs import Job
from benchmarks.workspace import Workspace
from results.tables import collect, table
from results.writers import to_text, write_tables


def wanted(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The runs of a grid as `results` asks for them."""
    return [
        {
            "run_id": job.spec.run_id,
            "dataset": job.spec.dataset,
            "ratio": job.spec.ratio,
            "seed": job.spec.seed,
            "method": job.spec.method,
            "label": job.cell.label,
        }
        for job in jobs
    ]


def folder(grid: Grid, workspace: Workspace, out: Path | None) -> Path:
    """Where a grid's tables and figures go."""
    return out or workspace.tables / grid.name


def write(
    grid: Grid,
    jobs: Sequence[Job],
    workspace: Workspace,
    rule: str,
    out: Path | None,
    *,
    plots: bool,
) -> str:
    """Write the tables (and figures) of a grid.

    Returns:
        The table for a terminal, and where the files are.
    """
    place = folder(grid, workspace, out)
    made = table(collect(workspace.store, wanted(jobs)), rule)
    paths = write_tables(made, place)
    if plots:
        paths += write_figures(grid, jobs, workspace, rule, out)
    names = ", ".join(path.name for path in paths)
    return f"{to_text(made)}\nwritten to {place}: {names}"


def write_figures(
    grid: Grid, jobs: Sequence[Job], workspace: Workspace, rule: str, out: Path | None
) -> list[Path]:
    """Write the figures that the finished runs allow; returns their paths."""
    from results.plots import write_plots

    return write_plots(workspace.store, wanted(jobs), folder(grid, workspace, out), rule=rule)
