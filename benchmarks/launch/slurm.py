"""Proposes what a grid still needs on a SLURM cluster; `slurm_submission` submits it as job arrays."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.launch.bundles import Bundle, pack
from benchmarks.launch.estimate import Estimates
from benchmarks.launch.work_order import WorkOrder
from benchmarks.plan.grid import Grid
from benchmarks.plan.jobs import Job
from benchmarks.plan.stages import Stage
from benchmarks.training import accelerate_variables
from benchmarks.workspace import Workspace
from methods.errors import UserError
from slurm import client
from slurm.launches import Launches, assigned, assigned_stages, job_name
from slurm.profile import Profile

WORKER = "benchmarks.launch.worker"
_LEFT_ALONE = ("done", "running", "unreadable")
"""States of runs that are not submitted."""


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
        keep_weights: whether runs keep their weights: "", "all" or "best".
    """

    profile: Profile
    processes: int = 1
    nodes: int = 0
    strategy: str | None = None
    checkpoint_seconds: float = 30.0
    hang_seconds: float = 600.0
    max_attempts: int = 0
    keep_weights: str = ""

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
        queued_stages: the jobs that make stages already, by the stages' identities.
        bundles: the jobs to submit.
        estimates: how long runs and stages take.
    """

    options: SlurmOptions
    jobs: list[Job]
    kinds: dict[str, str]
    queued: set[str]
    exhausted: set[str]
    stages: list[tuple[Stage, Job]]
    queued_stages: dict[str, str]
    bundles: list[Bundle]
    estimates: Estimates

    @property
    def submitted(self) -> list[Job]:
        """The runs in the bundles."""
        wanted = {run_id for bundle in self.bundles for run_id in bundle.run_ids}
        return [job for job in self.jobs if job.spec.run_id in wanted]

    @property
    def about(self) -> list[Job]:
        """The runs that the jobs have to know: those submitted, and one for each stage that is made."""
        found = {job.spec.run_id: job for job in (*self.submitted, *(job for _, job in self.stages))}
        return [found[run_id] for run_id in sorted(found)]

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

    Raises:
        SlurmError: the queue is not known: what waits in it would be submitted again.
        UserError: the processes do not fit on nodes; a variable that jobs inherit would change trainings.
    """
    accelerate_variables.check(options.strategy)
    kinds: dict[str, str] = {}
    exhausted = set()
    for job in jobs:
        state = workspace.store.state(job.directory(workspace))
        kinds[job.spec.run_id] = state.kind
        if options.max_attempts and state.attempts >= options.max_attempts:
            exhausted.add(job.spec.run_id)
    launches = list(Launches(workspace.runs))
    names = {launch.job_name for launch in launches}
    live = client.queue(names) if client.available() else {}
    queued, at_work = set(assigned(launches, live)), assigned_stages(launches, live)
    exhausted = {run_id for run_id in exhausted if kinds[run_id] not in _LEFT_ALONE}
    wanted = [
        job
        for job in jobs
        if kinds[job.spec.run_id] not in _LEFT_ALONE
        and job.spec.run_id not in queued | exhausted
        and (only is None or job.spec.run_id in only)
    ]
    stages: dict[str, tuple[Stage, Job]] = {}
    queued_stages: dict[str, str] = {}
    for job in wanted:
        for stage in job.stages:
            if stage.stage_id in at_work and not stage.is_done(workspace):
                queued_stages[stage.stage_id] = at_work[stage.stage_id]
            elif stage.stage_id not in stages and not stage.is_done(workspace):
                stages[stage.stage_id] = (stage, job)
    estimates = Estimates(workspace, processes=options.processes)
    made = pack(
        wanted,
        stages.values(),
        options.processes,
        60.0 * options.profile.bundle_minutes,
        run_seconds=lambda job: estimates.run(job).seconds,
        stage_seconds=lambda stage, job: estimates.stage(stage, job).seconds,
        queued=queued_stages,
    )
    if options.processes > 1:
        options.profile.shape(options.processes, options.nodes)  # raises where it does not fit
    return Proposal(
        options,
        jobs,
        kinds,
        queued & set(kinds),
        exhausted,
        list(stages.values()),
        queued_stages,
        made,
        estimates,
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


def plan_record(
    grid: Grid, proposal: Proposal, workspace: Workspace, code: Path, copy: Path
) -> dict[str, Any]:
    """The plan file of a launch: the work order of its jobs, and what is shown of them later.

    Args:
        grid: the grid.
        proposal: what is submitted.
        workspace: where data and runs lie.
        code: the copy of the code that the jobs execute.
        copy: the launch's copy of the grid's file, from `benchmarks.plan.copying`.

    Returns:
        JSON values; `slurm.launches` reads those that are not of the `WorkOrder`.
    """
    options, submitted = proposal.options, proposal.submitted
    order = WorkOrder.make(
        copy,
        workspace,
        proposal.about,
        module=WORKER,
        strategy=options.strategy,
        checkpoint_seconds=options.checkpoint_seconds,
        hang_seconds=options.hang_seconds,
        bundles=proposal.bundles,
        code=code,
        keep_weights=options.keep_weights,
    )
    return {
        **order.record(),
        "job_name": job_name(grid.name),
        "titles": {job.spec.run_id: job.spec.title for job in submitted},
        "estimates": {job.spec.run_id: proposal.estimates.run(job).seconds for job in submitted},
        "processes": options.processes,
        "nodes": options.nodes,
    }
