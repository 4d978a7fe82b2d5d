"""The verbs `run`, `retry` and `plan`: what a grid holds, what of it is missing, and doing that."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.arguments import positive
from benchmarks.cli import options, planning, slurm
from benchmarks.plan.summary import PlanSummary
from benchmarks.progress import Progress, silent
from benchmarks.workspace import Workspace
from methods.errors import UserError
from slurm.protocol import notice_of_group, place_in_group

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.cli.matrix import Entry
    from benchmarks.launch.local import Local


def add(verbs: options.Verbs) -> None:
    """Add the verbs."""
    shared = [options.folders(), options.grid(), options.outcome()]
    run_parser = options.verb(
        verbs,
        "run",
        run,
        help="run what is missing of a grid and print its table",
        examples=["run --grid demo", "--grid full --launcher slurm --profile my-cluster --max-gpu-hours 500"],
        parents=shared,
    )
    retry = options.verb(
        verbs,
        "retry",
        run,
        help="run again what failed, or was begun too often",
        examples=["retry --grid full", "retry --grid full --failed --launcher slurm --profile my-cluster"],
        parents=shared,
    )
    retry.add_argument("--failed", action="store_true", help="only runs that failed; not those that died")
    for parser in (run_parser, retry):
        _add_execution(parser)
    plan_parser = options.verb(
        verbs,
        "plan",
        plan,
        help="show what would run, and what it would cost",
        examples=["plan --grid demo", "plan --grid full --launcher slurm --profile my-cluster --probe"],
        parents=[options.folders(), options.grid()],
    )
    _add_processes(plan_parser)
    _add_verbose(plan_parser)
    plan_parser.add_argument(
        "--probe", action="store_true", help="measure a few steps of what was never measured, in jobs"
    )
    plan_parser.add_argument(
        "--save", type=Path, default=None, metavar="FILE", help="write the bundles for slurm/array.sbatch"
    )
    _add_keeping(plan_parser)
    slurm.add_flags(plan_parser)


def _add_execution(parser: argparse.ArgumentParser) -> None:
    """The options of the verbs that execute runs."""
    parser.add_argument("--dry-run", action="store_true", help="show the plan and stop; nothing is made")
    _add_verbose(parser)
    parser.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="time between checkpoints inside an epoch (default 30)",
    )
    _add_processes(parser)
    parser.add_argument(
        "--hang-seconds",
        type=float,
        default=600.0,
        metavar="S",
        help="a group of processes that does not move for so long ends, the late one "
        "is named and the run counts as failed (default 600)",
    )
    _add_keeping(parser)
    parser.add_argument("--no-plots", action="store_true", help="leave the figures out")
    parser.add_argument("--yes", action="store_true", help="submit to SLURM without asking")
    parser.add_argument(
        "--wait", action="store_true", help="with --launcher slurm: until the jobs have ended"
    )
    slurm.add_flags(parser)


def _add_keeping(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep-weights",
        nargs="?",
        const="all",
        default="",
        choices=("all", "best"),
        metavar="best",
        help="runs that are executed keep their weights (docs/models.md); with --keep-weights=best, once "
        "the grid is done, only those of the best method of each column",
    )


def _add_verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verbose", action="store_true", help="with a plan: list its runs, too")


def _add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--processes",
        type=positive,
        default=1,
        metavar="N",
        help="processes (GPUs) that train each run together (default 1)",
    )


def run(args: argparse.Namespace) -> int:
    """Execute what is missing of a grid, here or on a cluster, and print its table.

    Returns:
        The exit code: 0, or 1 when runs are not done.

    Raises:
        UserError: bad usage, a wrong grid file, absent data or weights.
    """
    if args.verbose and not args.dry_run:
        raise UserError("--verbose lists the runs of a plan: add --dry-run")
    if args.launcher == "slurm":
        return _show(args) if args.dry_run else _run_on_cluster(args)
    slurm.check_local(args)
    rank, world = place_in_group()
    if world > 1:
        if args.dry_run:
            raise UserError("--dry-run shows a plan: call it without torchrun")
        return _run_in_group(args, rank, world)
    if args.dry_run:
        return _show(args)
    if args.launcher == "inline":
        return _run_in_group(args, 0, 1)
    progress, workspace = Progress(), options.workspace(args)
    remembered = planning.recalled(args)
    if remembered is not None and not _missing(args, remembered, workspace):
        for notice in remembered.notices:
            progress.line(notice)
        return _finish(args, remembered, workspace, set())
    grid, jobs, summary = planning.resolved(args, progress.counter, progress.line)
    only = _missing(args, summary, workspace)
    missing = [job for job in jobs if job.spec.run_id in only]
    if missing:
        progress.line(summary.overview(workspace))
        for remark in summary.remarks:
            progress.line(remark)
        local = _local(args)
        each = f"{local.processes} processes of " if local.processes > 1 else ""
        progress.line(f"{len(missing)} runs on {local.workers} workers of {each}{local.threads} threads")
        started = time.monotonic()
        workspace.runs.mkdir(parents=True, exist_ok=True)
        local.execute(grid, missing, workspace, progress.line)
        _require_folder(workspace)
        progress.line(f"{grid.name}: {time.monotonic() - started:.0f} s")
    return _finish(args, summary, workspace, only)


def _show(args: argparse.Namespace) -> int:
    """Print the matrix of a grid, what it lacks and what is wrong with it; nothing is made.

    With SLURM, also what a launch would submit, as far as it is known.

    Raises:
        UserError: something is wrong with the grid or its files; what is absent only is no error.
    """
    from benchmarks.cli import matrix

    workspace, report = options.workspace(args), Progress().line
    asked = slurm.cluster(args, report) if args.launcher == "slurm" else None
    remembered = planning.recalled(args) if asked is None else None
    if remembered is not None and set(remembered.standing(workspace).values()) == {"done"}:
        entries = matrix.entries_of(remembered, workspace)
        print(f"{remembered.overview(workspace)}\n\n{matrix.text(entries)}")
        _remark(remembered.remarks, entries if args.verbose else [])
        return 0
    from benchmarks.plan.outlook import look

    outlook = look(options.load_grid(args), workspace)
    entries, stages = matrix.entries(outlook, workspace, args.processes)
    print(f"{matrix.overview(outlook, workspace)}\n\n{matrix.text(entries)}")
    if stages:
        print(f"\n{stages}")
    if outlook.lacks:
        print("\n".join(["", "missing:", *(f"  {line}" for line in outlook.lacks)]))
    _remark(outlook.summary.remarks, entries if args.verbose else [])
    if outlook.problems:
        sys.stdout.flush()
        raise UserError("\n".join(outlook.problems))
    if asked is not None:
        only = None if args.verb == "plan" else _missing(args, outlook.summary, workspace)
        print(f"\n{slurm.plan(args, outlook, only, asked, workspace, report)}")
    return 0


def _remark(remarks: Sequence[str], entries: Sequence[Entry]) -> None:
    """Print remarks on data, splits and weights, and a line for each run."""
    for lines in (remarks, [f"{entry.state:12} {entry.title}" for entry in entries]):
        if lines:
            print("\n".join(["", *lines]))


def _missing(args: argparse.Namespace, summary: PlanSummary, workspace: Workspace) -> set[str]:
    """Identities of the runs to execute: those not done; with `retry`, those begun without an end."""
    found = summary.states(workspace)
    if args.verb == "retry":
        wanted = {"failed"} if args.failed else {"failed", "dead"}
    else:
        wanted = set(found) - {"done", "unreadable"}  # these are named with the table
    return {each.run_id for kind, group in found.items() if kind in wanted for each in group}


def _run_on_cluster(args: argparse.Namespace) -> int:
    progress, workspace = Progress(), options.workspace(args)
    asked = slurm.ready(args, options.load_grid(args), workspace, progress.line)
    grid, jobs, summary = planning.resolved(args, progress.counter, progress.line)
    only = _missing(args, summary, workspace)
    if slurm.execute(args, grid, jobs, only, asked, workspace, progress.line):
        return _finish(args, summary, workspace, only)
    return 0


def _local(args: argparse.Namespace) -> Local:
    from benchmarks.launch.local import Local

    return Local.default(
        args.workers,
        args.processes,
        args.checkpoint_seconds,
        args.hang_seconds,
        args.strategy,
        Progress().line,
        args.keep_weights,
    )


def _require_folder(workspace: Workspace) -> None:
    from benchmarks.launch.execution import require_folder  # imports torch

    require_folder(workspace)  # a table would make it anew


def _run_in_group(args: argparse.Namespace, rank: int, world: int) -> int:
    """Work as one of the processes that torchrun, accelerate or srun has started, or alone.

    Raises:
        UserError: the grid needs processes of several kinds, or workers were asked for.
    """
    from benchmarks.launch.failures import GroupBroken
    from benchmarks.launch.worker import work
    from benchmarks.plan.copies import stop_using
    from benchmarks.plan.copying import copy_grid
    from benchmarks.plan.jobs import process_kinds

    main = rank == 0
    if world == 1:
        if (args.workers or 1) > 1 or args.processes > 1:
            raise UserError("--launcher inline is this process alone: leave --workers and --processes out")
    elif main or "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun starts them all; others may be left over
        Progress().line(notice_of_group(rank, world))
    workspace = options.workspace(args)
    grid, jobs, summary = planning.resolved(args, Progress().counter if main else silent)
    kinds = process_kinds(jobs)
    if len(kinds) > 1:
        names = ", ".join(f"{precision} with {strategy}" for precision, strategy in kinds)
        raise UserError(
            f"grid {grid.name!r} needs processes of several kinds ({names}); run it with "
            "--launcher local and --processes N instead, or a part of it at a time with --methods"
        )
    # torchrun and the like have set the number of threads, or torch takes all cores.
    workspace.runs.mkdir(parents=True, exist_ok=True)
    local = _local(args)
    only = _missing(args, summary, workspace) if main else set()
    threads = local.threads if os.environ.get("OMP_NUM_THREADS") else 0
    with tempfile.TemporaryDirectory(prefix="ssmll-plan-") as folder:
        copy = copy_grid(grid, jobs, Path(folder))  # each rank has its own, and all compare what they planned
        order = dataclasses.replace(local.order(copy, jobs, workspace), threads=threads)
        try:
            code = work(order, None, Progress().line)
        except GroupBroken as broken:
            code = broken.code
        stop_using()
    if code:  # the group's communication may wait for ever at a normal end
        sys.stdout.flush()
        os._exit(code)
    return _finish(args, summary, workspace, only) if main else 0


def _finish(args: argparse.Namespace, summary: PlanSummary, workspace: Workspace, executed: set[str]) -> int:
    """Print the table and name what is missing in it.

    Args:
        args: the command line.
        summary: the runs.
        workspace: where results lie.
        executed: identities of the runs that this call was to execute.
    """
    from benchmarks.cli.kept import settle
    from benchmarks.cli.report import write

    unread = write(summary, workspace, args.rule, args.out, plots=not args.no_plots)
    left = {kind: group for kind, group in summary.states(workspace).items() if kind != "done"}
    for kind, group in left.items():
        for each in group:
            if each.run_id in unread:  # named by `write`
                continue
            detail = workspace.store.state(each.directory(workspace)).detail
            print(f"{kind}: {each.title}" + (f": {detail}" if detail else ""), file=sys.stderr)
    all_kept = settle(args, summary, workspace, executed)
    return 1 if left or unread or not all_kept else 0


def plan(args: argparse.Namespace) -> int:
    """Print the matrix of a grid; with SLURM, what would be submitted, and its cost.

    Raises:
        UserError: bad usage, a wrong grid file, absent data or weights.
    """
    if args.keep_weights and not args.save:
        raise UserError("plan --keep-weights goes with --save: the saved jobs keep their weights")
    if args.launcher != "slurm":
        slurm.check_local(args)
    return _show(args)
