"""Runs a grid on a SLURM cluster: what it will cost, what is submitted, what became of it."""

from __future__ import annotations

import errno
import shlex
import shutil
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.launch.bundles import Bundle, pack
from benchmarks.launch.estimate import Estimates
from benchmarks.launch.snapshot import snapshot
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

LOCK_SECONDS = 120
POLL_SECONDS = 5.0
ALIGNED = ("left", "left", "right", "right", "right", "right", "right", "left")


@dataclass(frozen=True)
class SlurmOptions:
    """How a grid goes to a cluster.

    Attributes:
        profile: what jobs ask for.
        processes: processes (GPUs) that train each run together.
        nodes: nodes that they are spread over; 0 for as few as possible.
        strategy: overrides the recipes' way of spreading a step over processes; None leaves it.
        checkpoint_seconds: time between checkpoints inside an epoch.
        hang_seconds: time after which a group that does not move counts as hung.
        max_attempts: a run that was begun so often without an end is left out; 0 for no limit.
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
        """What a process uses of that which is paid for: a number, and GPU or CPU."""
        return (self.profile.gpus, "GPU") if self.profile.gpus else (self.profile.cpus, "CPU")


@dataclass(frozen=True)
class Proposal:
    """What a call would submit.

    Attributes:
        cluster: how.
        jobs: the grid's runs.
        kinds: state of each run in the store, by its id.
        queued: runs that have a job already.
        exhausted: runs that were begun too often.
        stages: stages to make, each with a run that needs it.
        bundles: what is submitted.
        estimates: how long things take.
    """

    cluster: SlurmOptions
    jobs: list[Job]
    kinds: dict[str, str]
    queued: set[str]
    exhausted: set[str]
    stages: list[tuple[Stage, Job]]
    bundles: list[Bundle]
    estimates: Estimates

    @property
    def submitted(self) -> list[Job]:
        """The runs of the bundles."""
        wanted = {run_id for bundle in self.bundles for run_id in bundle.run_ids}
        return [job for job in self.jobs if job.spec.run_id in wanted]

    def hours(self) -> tuple[float, int]:
        """Estimated device-hours, and how many runs and stages nothing is known of."""
        each, unknown, total = self.cluster.devices[0], 0, 0.0
        pieces: list[tuple[float | None, int]] = [
            (self.estimates.run(job).seconds, 1 if job.cell.kind == "fit" else self.cluster.processes)
            for job in self.submitted
        ] + [
            (
                self.estimates.stage(stage, job).seconds,
                self.cluster.processes if stage.kind == "warmup" else 1,
            )
            for stage, job in self.stages
        ]
        for seconds, processes in pieces:
            if seconds is None:
                unknown += 1
            else:
                total += seconds * processes * each / 3600
        return total, unknown

    def table(self) -> str:
        """What is submitted and what it will cost, for a terminal."""
        rows: dict[tuple[str, str], list[Job]] = {}
        for job in self.jobs:
            rows.setdefault((job.spec.dataset, job.cell.label), []).append(job)
        unit, wanted = self.cluster.devices[1], {job.spec.run_id for job in self.submitted}
        lines = []
        for (dataset, label), jobs in rows.items():
            submitted = [job for job in jobs if job.spec.run_id in wanted]
            found = [self.estimates.run(job) for job in submitted]
            known = [entry.seconds for entry in found if entry.seconds is not None]
            processes = 1 if jobs[0].cell.kind == "fit" else self.cluster.processes
            hours = sum(known) * processes * self.cluster.devices[0] / 3600
            cost = "<0.01" if hours < 0.005 else f"{hours:.2f}"
            lines.append(
                [
                    dataset,
                    label,
                    len(jobs),
                    sum(self.kinds[job.spec.run_id] == "done" for job in jobs),
                    sum(job.spec.run_id in self.queued for job in jobs),
                    len(submitted),
                    "" if not submitted else cost if len(known) == len(submitted) else "?",
                    ", ".join(dict.fromkeys(entry.source for entry in found)),
                ]
            )
        names = ["dataset", "method", "runs", "done", "queued", "to submit", f"{unit}-hours", "measured from"]
        hours, unknown = self.hours()
        shapes = Counter(self.cluster.shape(bundle) for bundle in self.bundles)
        nodes = ", ".join(
            f"{count} of {where} node{'s' * (where > 1)} x {each} task{'s' * (each > 1)}"
            for (where, each), count in shapes.items()
        )
        ending = [f"{len(self.bundles)} jobs ({nodes})" if self.bundles else "nothing to submit"]
        if self.stages:
            ending.append(f"{len(self.stages)} shared stages first")
        if self.exhausted:
            ending.append(
                f"{len(self.exhausted)} runs left out, begun {self.cluster.max_attempts} times "
                "without an end (`retry` submits them)"
            )
        ending.append(
            f"estimated {unit}-hours: {hours:.2f}"
            + (
                f" and {unknown} runs or stages of unknown length (`plan --probe` measures them)"
                if unknown
                else ""
            )
        )
        return (
            tabulate(lines, names, tablefmt="simple", disable_numparse=True, colalign=ALIGNED)
            + "\n"
            + "\n".join(ending)
        )


def propose(
    cluster: SlurmOptions, jobs: list[Job], workspace: Workspace, only: set[str] | None = None
) -> Proposal:
    """What is missing of a grid and has no job yet.

    Args:
        cluster: how.
        jobs: the grid's runs.
        workspace: where results lie.
        only: identities of the runs to submit; None for all that are missing.
    """
    kinds: dict[str, str] = {}
    exhausted = set()
    for job in jobs:
        state = workspace.store.state(job.directory(workspace))
        kinds[job.spec.run_id] = state.kind
        if cluster.max_attempts and state.attempts >= cluster.max_attempts:
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
    estimates = Estimates(workspace, processes=cluster.processes)
    made = pack(
        wanted,
        stages.values(),
        cluster.processes,
        60.0 * cluster.profile.bundle_minutes,
        of_run=lambda job: estimates.run(job).seconds,
        of_stage=lambda stage, job: estimates.stage(stage, job).seconds,
    )
    if cluster.processes > 1:
        cluster.profile.shape(cluster.processes, cluster.nodes)  # says what does not fit
    return Proposal(
        cluster, jobs, kinds, queued & set(kinds), exhausted, list(stages.values()), made, estimates
    )


def check_hours(proposal: Proposal, most: float | None) -> None:
    """Refuse what costs too much, or may: nothing is known of some of it.

    Raises:
        UserError: with the figures.
    """
    if most is None:
        return
    hours, unknown = proposal.hours()
    unit = proposal.cluster.devices[1]
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
    """What the jobs are told, see `benchmarks.launch.worker`, and what is shown of them afterwards."""
    cluster = proposal.cluster
    submitted = proposal.submitted
    # A stage's bundle needs the identity of a run that the stage is for.
    about = {job.spec.run_id for job in submitted}
    about |= {job.spec.run_id for _, job in proposal.stages}
    return {
        "grid": str(_grid_path(grid, code)),
        "data": str(workspace.data.resolve()),
        "runs": str(workspace.runs.resolve()),
        "run_ids": sorted(about),
        "strategy": cluster.strategy,
        "threads": 0,
        "checkpoint_seconds": cluster.checkpoint_seconds,
        "hang_seconds": cluster.hang_seconds,
        "launch": uuid.uuid4().hex,
        "command": shlex.join(sys.argv),
        "launcher": None,
        "job_name": f"ssmll-{grid.name}",
        "code": str(code),
        "bundles": [bundle.record() for bundle in proposal.bundles],
        "titles": {job.spec.run_id: job.spec.title for job in submitted},
        "estimates": {job.spec.run_id: proposal.estimates.run(job).seconds for job in submitted},
        "processes": cluster.processes,
        "nodes": cluster.nodes,
    }


def _grid_path(grid: Grid, code: Path) -> Path:
    """The grid's file in the copy of the code, where it is one of those that come along."""
    path = grid.path.resolve()
    inside = path.is_relative_to(REPOSITORY)
    return code / path.relative_to(REPOSITORY) if inside else path


def launch(
    grid: Grid, proposal: Proposal, workspace: Workspace, report: Callable[[str], None]
) -> Launch | None:
    """Submit a proposal; None when others submitted all of it in the meantime.

    Raises:
        SlurmError: SLURM refused; what was submitted before goes on.
        UserError: the disk is full, or another launch holds the folder.
    """
    root = workspace.runs / "slurm"
    try:
        lock = _locked(root, report)
        with lock:
            again = propose(
                proposal.cluster,
                proposal.jobs,
                workspace,
                {job.spec.run_id for job in proposal.submitted},
            )
            if not again.bundles:
                return None
            size = largest_array(proposal.cluster.profile)
            code = snapshot(root / "code")
            record = plan_record(grid, again, workspace, code)
            made = Launches(workspace.runs).create(grid.name, record)
            try:
                _submit(made, again, code, size, report)
            except BaseException:
                if not made.jobs():  # nothing came of it
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
    """One launch at a time in a folder of runs, also between login nodes."""
    place, told = root / "submitting", False
    end = time.monotonic() + LOCK_SECONDS
    while True:
        lock = acquire(place, ttl=30.0)
        if lock is not None:
            return lock
        if not told:
            report(f"another launch is submitting into {root}; waiting for it")
            told = True
        if time.monotonic() > end:
            raise UserError(f"another launch has held {place} for {LOCK_SECONDS} s; try again")
        time.sleep(0.5)


def _submit(made: Launch, proposal: Proposal, code: Path, size: int, report: Callable[[str], None]) -> None:
    """Stages first; the runs that need them wait for their jobs."""
    cluster, bundles = proposal.cluster, proposal.bundles
    python = cluster.profile.python or sys.executable
    work = [
        JobCommand(
            (python, "-m", "benchmarks.launch.worker", str(made.folder / "plan.json"), str(number)),
            cluster.profile.max_requeues,
            # A group starts anew after each run that fails; a single process goes on by itself.
            2 if bundle.processes == 1 else 2 + len(bundle.run_ids) + len(bundle.stage_ids),
        )
        for number, bundle in enumerate(bundles)
    ]
    jobs: dict[str, str] = {}  # stage to the job that makes it
    for array in arrays(cluster, bundles):
        after = dict.fromkeys(jobs[need] for k in array.bundles for need in bundles[k].needs if need in jobs)
        array = Array(array.bundles, array.nodes, array.each, shortened(list(after)))
        try:
            done = submit(
                array,
                made.log_folder,
                made.job_name,
                cluster.profile,
                [work[k] for k in array.bundles],
                code,
                size,
            )
        except client.SlurmError as error:
            kept = len(made.jobs())
            if kept or error.submitted:
                _record(made, error.submitted)
                kept += len(error.submitted)
                raise client.SlurmError(
                    f"{error}; {kept} jobs submitted before go on, the same command submits the rest"
                ) from None
            raise
        _record(made, done)
        for k, job in done:
            jobs |= dict.fromkeys(bundles[k].stage_ids, job)
        what = "stages" if bundles[array.bundles[0]].kind == "stages" else "runs"
        waits = f", after {len(after)} jobs of stages" if after else ""
        first = done[0][1].partition("_")[0]
        report(f"submitted: {len(done)} jobs of {what}, from {first} on{waits}")


def _record(made: Launch, done: Sequence[tuple[int, str]]) -> None:
    """Note the jobs; jobs that cannot be noted are cancelled, or they would be submitted twice."""
    try:
        made.record(dict(done))
    except OSError:
        client.call("scancel", *{job.partition("_")[0] for _, job in done})
        raise


def arrays(cluster: SlurmOptions, bundles: Sequence[Bundle]) -> list[Array]:
    """Bundles that ask for the same and wait for the same stages' dataset, in one array."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, bundle in enumerate(bundles):
        key = (bundle.kind, cluster.shape(bundle), bundle.dataset if bundle.needs else "")
        groups.setdefault(key, []).append(number)
    return [Array(tuple(numbers), nodes, each) for (_, (nodes, each), _), numbers in groups.items()]


def shortened(jobs: Sequence[str], most: int = 50) -> tuple[str, ...]:
    """Jobs to wait for; whole arrays where the elements would make an endless line."""
    if len(jobs) <= most:
        return tuple(jobs)
    return tuple(dict.fromkeys(job.partition("_")[0] for job in jobs))
