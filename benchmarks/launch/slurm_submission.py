"""Submits a proposal to SLURM as job arrays, once: nobody else submits meanwhile, nothing is forgotten."""

from __future__ import annotations

import errno
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.launch.bundles import Bundle
from benchmarks.launch.slurm import Proposal, SlurmOptions, plan_record
from benchmarks.launch.snapshot import COPIES, snapshot
from benchmarks.launch.work_order import NAME, WorkOrder
from benchmarks.plan.copying import copy_grid
from benchmarks.plan.grid import Grid
from benchmarks.plan.jobs import Job
from benchmarks.workspace import Workspace
from methods.errors import UserError
from results.lease import acquire
from slurm import client, sbatch
from slurm.launches import Launch, Launches, withdraw
from slurm.profile import Profile
from slurm.submit import Array, largest_array, submit
from slurm.task import JobCommand

LOCK_SECONDS = 120
"""How long a launch waits for another one that submits into the same folder."""


@dataclass(frozen=True)
class Scheduler:
    """What a launch asks of SLURM.

    Attributes:
        largest_array: gives the most elements that an array may have, see `slurm.submit`.
        submit: submits an array, see `slurm.submit`.
        cancel: cancels jobs by their numbers, see `slurm.client`.
        withdraw: cancels the jobs of submissions that broke off, see `slurm.launches`.
    """

    largest_array: Callable[[Profile], int] = largest_array
    submit: Callable[..., list[tuple[int, str]]] = submit
    cancel: Callable[[Iterable[str]], None] = client.cancel
    withdraw: Callable[[Iterable[Launch], Callable[[str], None]], None] = withdraw


def launch(
    grid: Grid,
    proposal: Proposal,
    workspace: Workspace,
    report: Callable[[str], None],
    *,
    scheduler: Scheduler | None = None,
    copy_code: Callable[[Path], Path] = snapshot,
    copy_files: Callable[[Grid, Sequence[Job], Path], Path] = copy_grid,
) -> Launch | None:
    """Submit a proposal.

    Args:
        grid: the grid.
        proposal: what is submitted, except what others have submitted in the meantime.
        workspace: where the launch is recorded.
        report: called with one line of progress.
        scheduler: what takes the jobs; None for the SLURM that is here.
        copy_code: copies the code for the jobs into a folder, see `snapshot`.
        copy_files: copies the grid's file, its recipe and the users' modules, see `benchmarks.plan.copying`.

    Returns:
        The launch; None when others have submitted all of it.

    Raises:
        SlurmError: SLURM refused; what was submitted before goes on.
        UserError: the disk is full, another launch holds the folder, or a file changed since the plan.
    """
    scheduler = scheduler or Scheduler()
    root = workspace.runs / "slurm"
    try:
        with _locked(root, report):
            scheduler.withdraw(Launches(workspace.runs), report)
            again = proposal.again(workspace)
            if not again.bundles:
                return None
            size = scheduler.largest_array(proposal.options.profile)
            code = copy_code(root / "code")
            copy = copy_files(grid, again.about, root.resolve() / COPIES)
            record = plan_record(grid, again, workspace, code, copy)
            made = Launches(workspace.runs).create(grid.name, record)
            try:
                _submit(made, again, code, size, scheduler, report)
            except BaseException:
                if not made.jobs() and not made.unsettled():  # nothing was submitted
                    shutil.rmtree(made.folder, ignore_errors=True)
                raise
            return made
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{root}: {error.strerror}; nothing more was submitted. Make room and repeat the "
                "command: what is queued or done is not submitted again"
            ) from None
        raise


def _locked(root: Path, report: Callable[[str], None]) -> Any:
    """The lock of a folder of runs: one launch at a time submits, also from several login nodes."""
    place, waiting = root / "submitting", False
    end = time.monotonic() + LOCK_SECONDS
    while True:
        lock = acquire(place, ttl=30.0)
        if lock is not None:
            return lock
        if not waiting:
            report(f"another launch is submitting into {root}; waiting for it")
            waiting = True
        if time.monotonic() > end:
            raise UserError(f"another launch has held {place} for {LOCK_SECONDS} s; try again")
        time.sleep(0.5)


def _submit(
    made: Launch,
    proposal: Proposal,
    code: Path,
    size: int,
    scheduler: Scheduler,
    report: Callable[[str], None],
) -> None:
    """Submit the arrays: those of stages first, because the runs that need them wait for their jobs."""
    options, bundles = proposal.options, proposal.bundles
    python, plan = options.profile.python or sys.executable, made.folder / NAME
    order = WorkOrder.from_record(made.plan, str(plan))
    commands = [
        JobCommand(
            (python, *order.argv(plan, number)),
            options.profile.max_requeues,
            # A group starts anew after each run that fails; a single process goes on by itself.
            2 if bundle.processes == 1 else 2 + len(bundle.run_ids) + len(bundle.stage_ids),
        )
        for number, bundle in enumerate(bundles)
    ]
    jobs = dict(proposal.queued_stages)  # stage to the job that makes it
    for array in arrays(options, bundles):
        after = dict.fromkeys(jobs[need] for k in array.bundles for need in bundles[k].needs if need in jobs)
        array = Array(array.bundles, array.nodes, array.each, shortened(list(after)))
        try:
            done = scheduler.submit(
                array,
                made.log_folder,
                made.job_name,
                options.profile,
                [commands[k] for k in array.bundles],
                code,
                size,
                before=made.intend,
                say=report,
            )
        except client.SlurmError as error:
            kept = len(made.jobs()) + len(error.submitted)
            if error.submitted:
                _record(made, error.submitted, scheduler)
            if not isinstance(error, sbatch.Unsettled):  # refused: none of the open ones exists
                for mark in made.unsettled():
                    made.settle(mark)
            if kept:
                raise client.SlurmError(
                    f"{error}; {kept} jobs submitted before go on, the same command submits the rest"
                ) from None
            raise
        _record(made, done, scheduler)
        for k, job in done:
            jobs |= dict.fromkeys(bundles[k].stage_ids, job)
        what = "stages" if bundles[array.bundles[0]].kind == "stages" else "runs"
        waits = f", after {len(after)} jobs of stages" if after else ""
        first = done[0][1].partition("_")[0]
        report(f"submitted: {len(done)} jobs of {what}, from {first} on{waits}")


def _record(made: Launch, done: Sequence[tuple[int, str]], scheduler: Scheduler) -> None:
    """Record the jobs; cancel them if that fails, or they would be submitted a second time."""
    try:
        made.record(dict(done))
    except OSError:
        scheduler.cancel({job.partition("_")[0] for _, job in done})
        raise


def arrays(options: SlurmOptions, bundles: Sequence[Bundle]) -> list[Array]:
    """The bundles by array: those of one shape that wait for the stages of one dataset."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, bundle in enumerate(bundles):
        key = (bundle.kind, options.shape(bundle), bundle.dataset if bundle.needs else "")
        groups.setdefault(key, []).append(number)
    return [Array(tuple(numbers), nodes, each) for (_, (nodes, each), _), numbers in groups.items()]


def shortened(jobs: Sequence[str], most: int = 50) -> tuple[str, ...]:
    """Jobs to wait for; whole arrays where naming the elements would make the line too long."""
    if len(jobs) <= most:
        return tuple(jobs)
    return tuple(dict.fromkeys(job.partition("_")[0] for job in jobs))
