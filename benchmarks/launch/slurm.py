"""Proposes what a grid still needs on a SLURM cluster, and submits it as job arrays."""

from __future__ import annotations

import errno
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.launch.bundles import Bundle, pack
from benchmarks.launch.estimate import Estimates
from benchmarks.launch.snapshot import snapshot
from benchmarks.launch.work_order import NAME, WorkOrder
from benchmarks.plan.grid import Grid
from benchmarks.plan.jobs import Job, Stage
from benchmarks.workspace import REPOSITORY, Workspace
from methods.errors import UserError
from results.lease import acquire
from slurm import client
from slurm.launches import Launch, Launches, assigned
from slurm.profile import Profile
from slurm.submit import Array, largest_array, submit
from slurm.task import JobCommand

WORKER = "benchmarks.launch.worker"
LOCK_SECONDS = 120
"""How long a launch waits for another one that submits into the same folder."""
POLL_SECONDS = 5.0


@dataclass(frozen=True)
class SlurmOptions:
    """How a grid is executed on a cluster.

    Attributes:
        profile: what jobs request.
        processes: processes (GPUs) that train each run together.
        nodes: nodes that the processes are spread over; 0 for as few as possible.
        strategy: overrides the recipes' way of spreading a step over processes; None leaves it.
        checkpoint_seconds: seconds between checkpoints inside an epoch.
        hang_seconds: seconds without progress after which a process group counts as hung.
        max_attempts: a run that was started this often without finishing is left out; 0 for no limit.
    """

    profile: Profile
    processes: int = 1
    nodes: int = 0
    strategy: str | None = None
    checkpoint_seconds: float = 30.0
    hang_seconds: float = 600.0
    max_attempts: int = 0

    def shape(self, bundle: Bundle) -> tuple[int, int]:
        """Nodes and tasks per node of a bundle's job."""
        if bundle.processes == 1:
            return 1, 1
        return self.profile.shape(self.processes, self.nodes)

    @property
    def devices(self) -> tuple[int, str]:
        """Billed devices per process: how many, and "GPU" or "CPU"."""
        return (self.profile.gpus, "GPU") if self.profile.gpus else (self.profile.cpus, "CPU")


@dataclass(frozen=True)
class Proposal:
    """What a launch would submit.

    Attributes:
        options: how it would be executed.
        jobs: the grid's runs.
        kinds: state of each run in the store, by its identity.
        queued: identities of the runs that have a job already.
        exhausted: identities of the runs that were started too often.
        stages: stages to make, each with a run that needs it.
        bundles: the jobs to submit.
        estimates: how long runs and stages take.
    """

    options: SlurmOptions
    jobs: list[Job]
    kinds: dict[str, str]
    queued: set[str]
    exhausted: set[str]
    stages: list[tuple[Stage, Job]]
    bundles: list[Bundle]
    estimates: Estimates

    @property
    def submitted(self) -> list[Job]:
        """The runs in the bundles."""
        wanted = {run_id for bundle in self.bundles for run_id in bundle.run_ids}
        return [job for job in self.jobs if job.spec.run_id in wanted]

    def hours(self) -> tuple[float, int]:
        """Estimated device-hours, and the number of runs and stages that were never measured."""
        each, unknown, total = self.options.devices[0], 0, 0.0
        pieces: list[tuple[float | None, int]] = [
            (self.estimates.run(job).seconds, 1 if job.cell.kind == "fit" else self.options.processes)
            for job in self.submitted
        ] + [
            (
                self.estimates.stage(stage, job).seconds,
                self.options.processes if stage.kind == "warmup" else 1,
            )
            for stage, job in self.stages
        ]
        for seconds, processes in pieces:
            if seconds is None:
                unknown += 1
            else:
                total += seconds * processes * each / 3600
        return total, unknown

    def again(self, workspace: Workspace) -> Proposal:
        """Propose the same runs again: others may have submitted some of them in the meantime."""
        only = {job.spec.run_id for job in self.submitted}
        return propose(self.options, self.jobs, workspace, only)


def propose(
    options: SlurmOptions, jobs: list[Job], workspace: Workspace, only: set[str] | None = None
) -> Proposal:
    """Propose to submit what a grid lacks and no job is queued for.

    Args:
        options: how the runs are executed.
        jobs: the grid's runs.
        workspace: where results lie.
        only: identities of the runs to submit; None for all that are missing.
    """
    kinds: dict[str, str] = {}
    exhausted = set()
    for job in jobs:
        state = workspace.store.state(job.directory(workspace))
        kinds[job.spec.run_id] = state.kind
        if options.max_attempts and state.attempts >= options.max_attempts:
            exhausted.add(job.spec.run_id)
    launches = list(Launches(workspace.runs))
    names = {launch.job_name for launch in launches}
    queued = set(assigned(launches, client.queue(names))) if client.available() else set()
    exhausted = {run_id for run_id in exhausted if kinds[run_id] not in ("done", "running")}
    wanted = [
        job
        for job in jobs
        if kinds[job.spec.run_id] not in ("done", "running")
        and job.spec.run_id not in queued | exhausted
        and (only is None or job.spec.run_id in only)
    ]
    stages: dict[str, tuple[Stage, Job]] = {}
    for job in wanted:
        for stage in job.stages:
            if stage.stage_id not in stages and not stage.is_done(workspace):
                stages[stage.stage_id] = (stage, job)
    estimates = Estimates(workspace, processes=options.processes)
    made = pack(
        wanted,
        stages.values(),
        options.processes,
        60.0 * options.profile.bundle_minutes,
        run_seconds=lambda job: estimates.run(job).seconds,
        stage_seconds=lambda stage, job: estimates.stage(stage, job).seconds,
    )
    if options.processes > 1:
        options.profile.shape(options.processes, options.nodes)  # raises where it does not fit
    return Proposal(
        options, jobs, kinds, queued & set(kinds), exhausted, list(stages.values()), made, estimates
    )


def check_hours(proposal: Proposal, most: float | None) -> None:
    """Refuse a proposal that costs more than allowed, or might: some of it was never measured.

    Args:
        proposal: what would be submitted.
        most: allowed device-hours; None for any.

    Raises:
        UserError: gives the figures.
    """
    if most is None:
        return
    hours, unknown = proposal.hours()
    unit = proposal.options.devices[1]
    if hours > most:
        raise UserError(f"estimated {hours:.2f} {unit}-hours are more than the {most:g} allowed")
    if unknown:
        raise UserError(
            f"--max-gpu-hours {most:g} cannot be promised: of {unknown} runs or stages the length "
            "is not known; measure them with `plan --launcher slurm --probe`"
        )


def confirmed(question: str) -> bool:
    """Ask on a terminal; anything but yes is no.

    Raises:
        UserError: there is no terminal.
    """
    if not sys.stdin.isatty():
        raise UserError("nobody is there to say yes: add --yes, or --dry-run to see the plan only")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def plan_record(grid: Grid, proposal: Proposal, workspace: Workspace, code: Path) -> dict[str, Any]:
    """The plan file of a launch: the work order of its jobs, and what is shown of them later.

    Args:
        grid: the grid.
        proposal: what is submitted.
        workspace: where data and runs lie.
        code: the copy of the code that the jobs execute.

    Returns:
        JSON values; `slurm.launches` reads those that are not of the `WorkOrder`.
    """
    options, submitted = proposal.options, proposal.submitted
    # A bundle of stages needs the identity of a run that each stage is for.
    about = {job.spec.run_id for job in submitted}
    about |= {job.spec.run_id for _, job in proposal.stages}
    order = WorkOrder.make(
        _grid_path(grid, code),
        workspace,
        sorted(about),
        module=WORKER,
        strategy=options.strategy,
        checkpoint_seconds=options.checkpoint_seconds,
        hang_seconds=options.hang_seconds,
        bundles=proposal.bundles,
        code=code,
    )
    return {
        **order.record(),
        "job_name": f"ssmll-{grid.name}",
        "titles": {job.spec.run_id: job.spec.title for job in submitted},
        "estimates": {job.spec.run_id: proposal.estimates.run(job).seconds for job in submitted},
        "processes": options.processes,
        "nodes": options.nodes,
    }


def _grid_path(grid: Grid, code: Path) -> Path:
    """The grid's file in the copy of the code, where the file is part of the code."""
    path = grid.path.resolve()
    inside = path.is_relative_to(REPOSITORY)
    return code / path.relative_to(REPOSITORY) if inside else path


@dataclass(frozen=True)
class Scheduler:
    """What a launch asks of SLURM.

    Attributes:
        largest_array: gives the most elements that an array may have, see `slurm.submit`.
        submit: submits an array, see `slurm.submit`.
        cancel: cancels jobs by their numbers, see `slurm.client`.
    """

    largest_array: Callable[[Profile], int] = largest_array
    submit: Callable[..., list[tuple[int, str]]] = submit
    cancel: Callable[[Iterable[str]], None] = client.cancel


def launch(
    grid: Grid,
    proposal: Proposal,
    workspace: Workspace,
    report: Callable[[str], None],
    *,
    scheduler: Scheduler | None = None,
    copy_code: Callable[[Path], Path] = snapshot,
) -> Launch | None:
    """Submit a proposal.

    Args:
        grid: the grid.
        proposal: what is submitted, except what others have submitted in the meantime.
        workspace: where the launch is recorded.
        report: called with one line of progress.
        scheduler: what takes the jobs; None for the SLURM that is here.
        copy_code: copies the code for the jobs into a folder, see `snapshot`.

    Returns:
        The launch; None when others have submitted all of it.

    Raises:
        SlurmError: SLURM refused; what was submitted before goes on.
        UserError: the disk is full, or another launch holds the folder.
    """
    scheduler = scheduler or Scheduler()
    root = workspace.runs / "slurm"
    try:
        with _locked(root, report):
            again = proposal.again(workspace)
            if not again.bundles:
                return None
            size = scheduler.largest_array(proposal.options.profile)
            code = copy_code(root / "code")
            record = plan_record(grid, again, workspace, code)
            made = Launches(workspace.runs).create(grid.name, record)
            try:
                _submit(made, again, code, size, scheduler, report)
            except BaseException:
                if not made.jobs():  # nothing was submitted
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
    jobs: dict[str, str] = {}  # stage to the job that makes it
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
            )
        except client.SlurmError as error:
            kept = len(made.jobs())
            if kept or error.submitted:
                _record(made, error.submitted, scheduler)
                kept += len(error.submitted)
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
