"""Jobs of a cluster that are waited for: preparing data, measuring steps, whole grids."""

from __future__ import annotations

import secrets
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.launch.estimate import Estimates
from benchmarks.launch.slurm import POLL_SECONDS, Proposal, SlurmOptions
from benchmarks.launch.snapshot import snapshot
from benchmarks.plan.grid import Grid
from benchmarks.plan.jobs import Job, process_kinds, states, uncached
from benchmarks.signals import stopped_by
from benchmarks.workspace import Workspace
from methods.errors import UserError
from results.errors import StoreError
from results.files import atomic_write_json
from slurm import client
from slurm.launches import Launches
from slurm.submit import Array, submit
from slurm.task import JobCommand


def run_job(
    cluster: SlurmOptions,
    workspace: Workspace,
    name: str,
    command: Sequence[str],
    report: Callable[[str], None],
    shape: tuple[int, int] = (1, 1),
) -> Path:
    """Run a command in one job and wait until it has ended, well or badly.

    Interrupting the wait leaves the job alone.

    Args:
        cluster: what to ask for.
        workspace: below its runs the job's log lies.
        name: the job's name in the queue, after "ssmll-".
        command: arguments of Python.
        report: gets a line when it is submitted and when it starts.
        shape: nodes, and tasks on each; every task runs the command.

    Returns:
        The job's log.
    """
    root = workspace.runs / "slurm"
    root.mkdir(parents=True, exist_ok=True)
    code = snapshot(root / "code")
    python = cluster.profile.python or sys.executable
    work = JobCommand((python, *command), cluster.profile.max_requeues)
    ((_, job),) = submit(
        Array((0,), *shape), root / "jobs", f"ssmll-{name}", cluster.profile, [work], code, 1
    )
    log = root / "jobs" / f"{job}_0_log.out"
    report(f"{name}: job {job}, log {log}; it goes on when this is interrupted")
    seen = ""
    while (entry := client.queue([f"ssmll-{name}"]).get(job)) is not None:
        if entry.state != seen:
            report(f"{name}: job {job} {entry.state.lower()} {entry.nodes or entry.reason}")
            seen = entry.state
        time.sleep(POLL_SECONDS / 5)
    return log


def tail(log: Path, lines: int = 3) -> str:
    """The last lines of a log, for an error message."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "no log was written; is --runs on a file system that nodes share?"
    return " | ".join(line.strip() for line in text[-lines:] if line.strip())


def prepare(
    cluster: SlurmOptions,
    grid: Grid,
    words: Sequence[str],
    workspace: Workspace,
    report: Callable[[str], None],
) -> None:
    """Cache a grid's images in a job, instead of on the login node.

    Args:
        cluster: what to ask for.
        grid: whose data.
        words: further words of the command line: which part of the grid.
        workspace: where data lies.
        report: gets progress.

    Raises:
        UserError: the job ended without having prepared everything.
    """
    command = [
        "-m",
        "benchmarks.run",
        "plan",
        "--grid",
        str(grid.path.resolve()),
        *words,
        "--data",
        str(workspace.data.resolve()),
        "--runs",
        str(workspace.runs.resolve()),
        "--workers",
        str(cluster.profile.cpus),
    ]
    report(f"the images of grid {grid.name} are not cached yet: a job does it")
    log = run_job(cluster, workspace, "prepare", command, report)
    left = uncached(grid, workspace)
    if left:
        raise UserError(f"{', '.join(left)}: the job did not prepare it: {tail(log)} ({log})")


def measure(grid: Grid, proposal: Proposal, workspace: Workspace, report: Callable[[str], None]) -> None:
    """Time a few steps of what nothing is known of: a job for each kind of process.

    Raises:
        UserError: a job ended without having measured.
    """
    cluster = proposal.cluster
    unknown = [job for job in proposal.submitted if proposal.estimates.run(job).seconds is None]
    folder = workspace.runs.resolve() / "slurm" / "probes"
    folder.mkdir(parents=True, exist_ok=True)
    for kind in process_kinds(unknown):
        jobs = [job for job in unknown if job.process_kind == kind]
        plan = {
            "grid": str(grid.path.resolve()),
            "data": str(workspace.data.resolve()),
            "runs": str(workspace.runs.resolve()),
            "strategy": cluster.strategy,
            "threads": 0,
            "run_ids": [job.spec.run_id for job in jobs],
        }
        file = folder / f"plan-{secrets.token_hex(4)}"
        atomic_write_json(file, plan)
        try:
            # Processes that train together are measured together.
            fit = all(job.cell.kind == "fit" for job in jobs)
            shape = (1, 1) if fit else cluster.profile.shape(cluster.processes, cluster.nodes)
            command = ["-m", "benchmarks.launch.estimate", str(file)]
            log = run_job(cluster, workspace, "probe", command, report, shape)
        finally:
            file.unlink()
        again = Estimates(workspace, processes=cluster.processes)
        left = [job for job in jobs if again.run(job).seconds is None]
        if left:
            raise UserError(f"{left[0].spec.title} was not measured: {tail(log)} ({log})")


def wait(proposal: Proposal, workspace: Workspace, report: Callable[[str], None]) -> None:
    """Wait until no job of a grid's runs is left, telling when something has changed.

    Args:
        proposal: what was submitted, and what had jobs before.
        workspace: where results appear.
        report: gets a line at each change.

    Raises:
        Stopped: SIGTERM or SIGUSR2 came; the jobs go on.
    """
    ids = {job.spec.run_id for job in proposal.jobs}
    told = ""
    with stopped_by(signal.SIGTERM, signal.SIGUSR2):  # a driver job ends; its jobs go on
        while True:
            grouped = states(proposal.jobs, workspace)
            line = ", ".join(f"{len(jobs)} {kind}" for kind, jobs in grouped.items())
            if line != told:
                report(line)
                told = line
            if set(grouped) <= {"done"} or not _live(workspace, ids):
                return
            time.sleep(POLL_SECONDS)


def _live(workspace: Workspace, ids: set[str]) -> bool:
    """Whether a job of these runs, or of their stages, waits or works."""
    launches = list(Launches(workspace.runs))
    try:
        live = client.queue({launch.job_name for launch in launches})
    except client.SlurmError:  # the controller is away for a moment
        return True
    return any(
        job in live and ids & set(launch.plan["titles"])
        for launch in launches
        for job in launch.jobs().values()
    )


def spent(cluster: SlurmOptions, jobs: Sequence[Job], workspace: Workspace) -> str:
    """One line: what finished runs were estimated to take when they were submitted, and took.

    Args:
        cluster: whose hours.
        jobs: the grid's runs; those that were never submitted with an estimate do not count.
        workspace: where results lie.

    Returns:
        The line, or "" where nothing was estimated.
    """
    estimates: dict[str, float] = {}
    for launch in Launches(workspace.runs):
        for run_id, seconds in launch.plan.get("estimates", {}).items():
            if seconds is not None:
                estimates.setdefault(run_id, seconds)
    each, unit = cluster.devices
    used, estimated, count = 0.0, 0.0, 0
    for job in jobs:
        if job.spec.run_id not in estimates:
            continue
        try:
            result = workspace.store.load(job.directory(workspace))
        except StoreError:
            continue
        hours = result["provenance"]["processes"] * each / 3600
        used += result["cost"]["seconds"] * hours
        estimated += estimates[job.spec.run_id] * hours
        count += 1
    if not count:
        return ""
    return (
        f"{count} runs were estimated at {estimated:.2f} {unit}-hours and trained for {used:.2f} "
        f"({100 * used / max(estimated, 1e-9):.0f} %)"
    )
