"""Submits SLURM jobs and waits for them: preparing data, measuring speeds, whole grids."""

from __future__ import annotations

import re
import secrets
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.launch.estimate import Estimates
from benchmarks.launch.slurm import Proposal, SlurmOptions
from benchmarks.launch.snapshot import COPIES, snapshot
from benchmarks.launch.work_order import WorkOrder
from benchmarks.plan.copying import copy_grid
from benchmarks.plan.grid import Grid
from benchmarks.plan.jobs import Job, process_kinds, states, uncached
from benchmarks.signals import stopped_by
from benchmarks.status.logs import tail
from benchmarks.workspace import Workspace
from methods.errors import UserError
from results.errors import StoreError
from slurm import client, words
from slurm.launches import Launches, last_jobs
from slurm.submit import Array, submit
from slurm.task import JobCommand

TIMING = "benchmarks.launch.timing"
POLL_SECONDS = 5.0


def run_job(
    options: SlurmOptions,
    workspace: Workspace,
    name: str,
    command: Sequence[str],
    report: Callable[[str], None],
    shape: tuple[int, int] = (1, 1),
) -> Path:
    """Run a command in one job and wait until it has ended, well or badly.

    Interrupting the wait does not cancel the job.

    Args:
        options: what the job requests.
        workspace: its folder of runs takes the job's log.
        name: the job's name in the queue, after "ssmll-".
        command: arguments of Python.
        report: gets a line when the job is submitted and whenever its state changes.
        shape: nodes, and tasks on each node; every task runs the command.

    Returns:
        The job's log.
    """
    root = workspace.runs / "slurm"
    root.mkdir(parents=True, exist_ok=True)
    code = snapshot(root / "code")
    python = options.profile.python or sys.executable
    job_command = JobCommand((python, *command), options.profile.max_requeues)
    ((_, job),) = submit(
        Array((0,), *shape), root / "jobs", f"ssmll-{name}", options.profile, [job_command], code, 1
    )
    log = root / "jobs" / f"{job}_0_log.out"
    report(f"{name}: job {job}, log {log}; it goes on when this is interrupted")
    seen = ""
    while True:
        try:
            entry = client.queue([f"ssmll-{name}"]).get(job)
        except client.SlurmError as error:  # the job goes on, whoever answers
            report(f"{name}: {error}; job {job} goes on, and is waited for")
        else:
            if entry is None:
                return log
            told = f"{entry.state.lower()} {entry.nodes or words.explained(entry.why)}"
            if told != seen:
                report(f"{name}: job {job} {told}")
                seen = told
        time.sleep(POLL_SECONDS / 5)


def _log_end(log: Path, lines: int = 3) -> str:
    """The last lines of a job's log, for an error message."""
    try:
        return f"{' | '.join(line.strip() for line in tail(log, lines) if line.strip())} ({log})"
    except OSError:
        return f"no log was written; is --runs on a file system that nodes share? ({log})"


def prepare(
    options: SlurmOptions,
    grid: Grid,
    workspace: Workspace,
    report: Callable[[str], None],
) -> None:
    """Cache the images of a grid in a job instead of on the login node.

    Args:
        options: what the job requests.
        grid: the grid.
        workspace: where the data lies.
        report: called with one line of progress.

    Raises:
        UserError: the job ended without having prepared everything.
    """
    # Methods are not run, but the grid's modules are imported: those of now, whenever the job starts.
    copy = copy_grid(grid, (), workspace.runs.resolve() / "slurm" / COPIES)
    command = [
        "-m",
        "benchmarks.run",
        "prepare",
        "--grid",
        str(copy),
        "--data",
        str(workspace.data.resolve()),
        "--runs",
        str(workspace.runs.resolve()),
        "--workers",
        str(options.profile.cpus),
    ]
    report(f"the images of grid {grid.name} are not cached yet: a job does it")
    log = run_job(options, workspace, "prepare", command, report)
    left = uncached(grid, workspace)
    if left:
        raise UserError(f"{', '.join(left)}: the job did not prepare it: {_log_end(log)}")


def measure(grid: Grid, proposal: Proposal, workspace: Workspace, report: Callable[[str], None]) -> None:
    """Time a few steps of the runs that were never measured, in one job for each process kind.

    Args:
        grid: the grid.
        proposal: the runs.
        workspace: where the measurements are kept.
        report: called with one line of progress.

    Raises:
        UserError: a job ended without having measured.
    """
    options = proposal.options
    unknown = [job for job in proposal.submitted if proposal.estimates.run(job).seconds is None]
    folder = workspace.runs.resolve() / "slurm" / "probes"
    folder.mkdir(parents=True, exist_ok=True)
    for kind in process_kinds(unknown):
        jobs = [job for job in unknown if job.process_kind == kind]
        order = WorkOrder.make(
            copy_grid(grid, jobs, workspace.runs.resolve() / "slurm" / COPIES),
            workspace,
            jobs,
            strategy=options.strategy,
            checkpoint_seconds=options.checkpoint_seconds,
            hang_seconds=options.hang_seconds,
            module=TIMING,
        )
        file = folder / f"plan-{secrets.token_hex(4)}"
        order.write(file)
        try:
            # Processes that train together are measured together.
            fit = all(job.cell.kind == "fit" for job in jobs)
            shape = (1, 1) if fit else options.profile.shape(options.processes, options.nodes)
            command = order.argv(file)
            log = run_job(options, workspace, "probe", command, report, shape)
        finally:
            file.unlink()
        again = Estimates(workspace, processes=options.processes)
        left = [job for job in jobs if again.run(job).seconds is None]
        if left:
            raise UserError(f"{left[0].spec.title} was not measured: {_log_end(log)}")


def wait(proposal: Proposal, workspace: Workspace, report: Callable[[str], None]) -> None:
    """Wait until no job of a grid's runs is left.

    Args:
        proposal: what was submitted, and what had jobs before.
        workspace: where results appear.
        report: called with the runs by state, whenever they change.

    Raises:
        Stopped: SIGTERM or SIGUSR2 came; the jobs go on.
    """
    ids = {job.spec.run_id for job in proposal.jobs}
    shown, stuck = "", ""
    with stopped_by(signal.SIGTERM, signal.SIGUSR2):  # a driver job ends; its jobs go on
        while True:
            grouped = states(proposal.jobs, workspace)
            line = ", ".join(f"{len(jobs)} {kind}" for kind, jobs in grouped.items())
            if line != shown:
                report(line)
                shown = line
            live = _live(workspace, ids)
            if set(grouped) <= {"done"} or live == []:
                break
            line = _stuck(live or [])
            if line not in ("", stuck):
                report(line)
                stuck = line
            time.sleep(POLL_SECONDS)
    for line in _lost(proposal.jobs, workspace):
        report(line)


def _live(workspace: Workspace, ids: set[str]) -> list[client.Queued] | None:
    """The jobs of these runs, or of their stages, that wait or work; None where that is not known."""
    launches = list(Launches(workspace.runs))
    try:
        live = client.queue({launch.job_name for launch in launches})
    except client.SlurmError:  # the controller is away for longer: what it would say is asked again
        return None
    return [
        live[job]
        for launch in launches
        if ids & launch.titles.keys() and not launch.elsewhere
        for job in launch.jobs().values()
        if job in live
    ]


def _stuck(live: Sequence[client.Queued]) -> str:
    """One line about the jobs that will not start until somebody does something; "" without any."""
    reasons: dict[str, list[str]] = {}
    for queued in live:
        if queued.hopeless:
            reasons.setdefault(words.explained(queued.why), []).append(queued.job)
    return "; ".join(
        f"{len(jobs)} jobs ({jobs[0]}{', ...' if len(jobs) > 1 else ''}) do not start: {word}"
        for word, jobs in sorted(reasons.items())
    )


def _lost(jobs: Sequence[Job], workspace: Workspace) -> list[str]:
    """Lines about runs whose jobs are over and have left nothing: how, and the last lines of a log."""
    submitted = last_jobs(Launches(workspace.runs))
    lost: dict[tuple[str, str], list[str]] = {}
    grouped = states(jobs, workspace)
    for kind in ("not started", "dead"):
        for job in grouped.get(kind, ()):
            if job.spec.run_id in submitted:
                launch, number = submitted[job.spec.run_id]
                # The same cause names other jobs and folders in each log.
                cause = re.sub(r"\d+", "#", _log_end(launch.log(number)))
                lost.setdefault((kind, cause), []).append(job.spec.run_id)
    if not lost:
        return []
    how = client.ended({submitted[run_id][1] for runs in lost.values() for run_id in runs})
    found = []
    for (kind, _), runs in lost.items():
        launch, number = submitted[runs[0]]
        state = f" ({words.explained(how[number])})" if number in how else ""
        what = "were never begun" if kind == "not started" else "were begun and not ended"
        end = _log_end(launch.log(number))
        found.append(f"{len(runs)} runs {what}: job {number} is over{state}: {end}")
    return found


def spent(options: SlurmOptions, jobs: Sequence[Job], workspace: Workspace) -> str:
    """One line that compares the estimated with the used device-hours of finished runs.

    Args:
        options: says which devices count.
        jobs: the grid's runs; those that were submitted without an estimate do not count.
        workspace: where results lie.

    Returns:
        The line, or "" where nothing was estimated.
    """
    estimates: dict[str, float] = {}
    for launch in Launches(workspace.runs):
        for run_id, seconds in launch.estimates.items():
            if seconds is not None:
                estimates.setdefault(run_id, seconds)
    each, unit = options.devices
    used, estimated, count = 0.0, 0.0, 0
    for job in jobs:
        if job.spec.run_id not in estimates:
            continue
        try:
            result = workspace.store.load(job.directory(workspace))
        except StoreError:
            continue
        hours = result["provenance"].get("processes", 1) * each / 3600
        used += result["cost"]["seconds"] * hours
        estimated += estimates[job.spec.run_id] * hours
        count += 1
    if not count:
        return ""
    return (
        f"{count} runs were estimated at {estimated:.2f} {unit}-hours and trained for {used:.2f} "
        f"({100 * used / max(estimated, 1e-9):.0f} %)"
    )
