"""The verbs `cancel` and `doctor`, and what `run`, `retry` and `plan` do with `--launcher slurm`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cli import options
from benchmarks.workspace import Workspace
from methods.errors import UserError
from slurm import client, profile, site
from slurm.entry import importable
from slurm.launches import Launch, Launches, job_name, withdraw

if TYPE_CHECKING:
    from benchmarks.launch.slurm import SlurmOptions
    from benchmarks.plan.grid import Grid
    from benchmarks.plan.jobs import Job
    from benchmarks.plan.outlook import Outlook


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The options of launching on a cluster."""
    parser.add_argument(
        "--launcher",
        choices=("local", "inline", "slurm"),
        default="local",
        help="where runs are executed (default: local): by workers here, one after the other in this "
        "very process (for breakpoints), or by jobs",
    )
    parser.add_argument(
        "--profile",
        default=None,
        metavar="NAME",
        help="what jobs ask the cluster for: a .toml file, or one of "
        f"{', '.join(profile.available())} (default: "
        f"${profile.VARIABLE})",
    )
    parser.add_argument(
        "--nodes",
        type=int,
        default=0,
        metavar="N",
        help="nodes that the processes of a run are spread over (default: as few as possible)",
    )
    parser.add_argument(
        "--max-gpu-hours",
        type=float,
        default=None,
        metavar="H",
        help="submit nothing that is estimated to take longer",
    )


def add(verbs: options.Verbs) -> None:
    """Add the verbs `cancel` and `doctor`; `run`, `retry` and `plan` take `--launcher slurm`."""
    cancel_parser = options.verb(
        verbs,
        "cancel",
        cancel,
        help="cancel the jobs of a grid or launch",
        examples=["cancel full", "cancel --yes"],
        parents=[options.folders()],
    )
    cancel_parser.add_argument(
        "name", nargs="?", default=None, help="a grid, or the start of a launch's name (default: all)"
    )
    cancel_parser.add_argument("--yes", action="store_true", help="do not ask")
    doctor_parser = options.verb(
        verbs,
        "doctor",
        doctor,
        help="check whether the cluster is ready for this harness",
        examples=["doctor --profile my-cluster", "doctor --profile my-cluster --no-job"],
        parents=[options.folders()],
    )
    doctor_parser.add_argument("--profile", default=None, metavar="NAME", help="as for `run`")
    doctor_parser.add_argument(
        "--no-job", action="store_true", help="look from here only, without a job on a node"
    )


def cluster(args: argparse.Namespace, report: Callable[[str], None]) -> SlurmOptions:
    """The SLURM options of the command line.

    Args:
        args: the command line.
        report: gets a line for each variable of the environment that decides something about jobs.

    Raises:
        UserError: a bad profile; SLURM is not here; a variable contradicts what jobs get.
    """
    from benchmarks.launch.slurm import SlurmOptions

    wanted, said = site.adopt(profile.load(args.profile))
    for line in said:
        report(line)
    client.require()
    if args.nodes < 0:
        raise UserError(f"--nodes {args.nodes}: at least 1")
    return SlurmOptions(
        wanted,
        args.processes,
        args.nodes,
        args.strategy,
        getattr(args, "checkpoint_seconds", 30.0),
        getattr(args, "hang_seconds", 600.0),
        0 if args.verb == "retry" else wanted.max_attempts,
        args.keep_weights,
    )


def check_local(args: argparse.Namespace) -> None:
    """Reject SLURM flags on a local run.

    Raises:
        UserError: names the flag.
    """
    for flag in ("profile", "nodes", "max_gpu_hours", "probe", "save"):
        if getattr(args, flag, None):
            raise UserError(f"--{flag.replace('_', '-')} goes with --launcher slurm")


def ready(
    args: argparse.Namespace, grid: Grid, workspace: Workspace, report: Callable[[str], None]
) -> SlurmOptions:
    """Check the cluster; submit a job that caches the images if they are not cached.

    Raises:
        UserError: see `cluster`; or weights or tokenizers are absent, for which no job caches images.
    """
    from benchmarks.launch.slurm_jobs import prepare
    from benchmarks.plan.jobs import uncached, without_weights

    asked = cluster(args, report)
    if uncached(grid, workspace):
        problems = without_weights(grid)
        if problems:
            raise UserError("\n".join(problems))
        prepare(asked, grid, workspace, report)
    return asked


def execute(
    args: argparse.Namespace,
    grid: Grid,
    jobs: list[Job],
    only: set[str] | None,
    asked: SlurmOptions,
    workspace: Workspace,
    report: Callable[[str], None],
) -> bool:
    """Submit what is missing of a grid; with --wait, wait for it.

    Args:
        args: the command line.
        grid: the grid.
        jobs: its runs.
        only: identities of the runs to submit; None for all that are missing.
        asked: from `ready`.
        workspace: where results lie.
        report: gets progress.

    Returns:
        Whether there is an outcome to print: after waiting, or when everything was done before.
    """
    from benchmarks.launch.cost_table import cost_table
    from benchmarks.launch.slurm import check_hours, confirmed, propose
    from benchmarks.launch.slurm_jobs import wait
    from benchmarks.launch.slurm_submission import launch

    proposal = propose(asked, jobs, workspace, only)
    report(cost_table(proposal))
    if not proposal.bundles and all(kind == "done" for kind in proposal.kinds.values()):
        _report_spent(asked, jobs, workspace, report)
        return True
    made = None
    if proposal.bundles:
        check_hours(proposal, args.max_gpu_hours)
        if not (args.yes or confirmed("submit?")):
            report("nothing was submitted")
            return False
        made = launch(grid, proposal, workspace, report)
        if made is None:
            report("another launch has submitted these runs in the meantime")
        else:
            report(f"launch {made.folder.name}; now `status --grid {args.grid}`, `logs`, `cancel`")
    if not args.wait:
        return False
    wait(proposal, workspace, report)
    _report_spent(asked, jobs, workspace, report)
    return True


def _report_spent(
    asked: SlurmOptions, jobs: list[Job], workspace: Workspace, report: Callable[[str], None]
) -> None:
    from benchmarks.launch.slurm_jobs import spent

    text = spent(asked, jobs, workspace)
    if text:
        report(text)


def plan(
    args: argparse.Namespace,
    outlook: Outlook,
    only: set[str] | None,
    asked: SlurmOptions,
    workspace: Workspace,
    report: Callable[[str], None],
) -> str:
    """What `run` would submit, and what it would cost, as far as it is known; the text to print.

    With --probe, runs of unknown speed are measured first. With --save, the bundles are written
    to a file for `slurm/array.sbatch`. Both need the identities of all runs.

    Args:
        args: the command line.
        outlook: what is known of the grid.
        only: identities of the runs that would be submitted; None for all that are missing.
        asked: from `cluster`.
        workspace: where results lie.
        report: gets progress.

    Raises:
        UserError: the measurement failed; the file cannot be written; or runs have no identity yet.
    """
    from benchmarks.launch.cost_table import cost_table
    from benchmarks.launch.slurm import plan_record, propose
    from benchmarks.launch.slurm_jobs import measure
    from benchmarks.launch.snapshot import COPIES, snapshot
    from benchmarks.plan.copying import copy_grid
    from results.files import atomic_write_json

    grid, jobs = outlook.grid, list(outlook.jobs)
    probe, save = getattr(args, "probe", False), getattr(args, "save", None)
    unknown = ""
    if not outlook.is_complete:
        count = f"{len(grid.cells) - len(jobs)} of {len(grid.cells)} runs"
        for flag, given in (("probe", probe), ("save", save)):
            if given:
                raise UserError(
                    f"--{flag} needs the identities of all runs, and {count} have none yet, because of "
                    f"what is missing; `prepare --grid {grid.argument} --weights` brings it"
                )
        unknown = (
            f"{count} have no identity yet, because of what is missing: what they cost is not known. "
            "A launch has a job cache the images first"
        )
        if not jobs:
            return unknown
    proposal = propose(asked, jobs, workspace, only)
    if probe:
        measure(grid, proposal, workspace, report)
        proposal = propose(asked, jobs, workspace, only)
    text = cost_table(proposal) + (f"\n{unknown}" if unknown else "")
    if save is None:
        return text
    root = workspace.runs.resolve() / "slurm"
    importable(root / "code")  # before a plan is saved that no job can execute
    code = snapshot(root / "code")
    try:
        copy = copy_grid(grid, proposal.about, root / COPIES)
        atomic_write_json(save, plan_record(grid, proposal, workspace, code, copy))
    except OSError as error:
        raise UserError(f"{save}: {error.strerror}") from None
    return (
        f"{text}\n{len(proposal.bundles)} bundles in {save}: "
        f"sbatch --array=0-{max(0, len(proposal.bundles) - 1)} slurm/array.sbatch {save}"
    )


def cancel(args: argparse.Namespace) -> int:
    """Cancel jobs that wait or work; runs in training save first."""
    from benchmarks.launch.slurm import confirmed

    workspace = options.workspace(args)
    found = _launches(workspace, args.name)
    withdraw(found, print)
    live = client.queue({launch.job_name for launch in found})
    for place in sorted({str(launch.elsewhere) for launch in found if launch.elsewhere}):
        print(
            f"this folder is a copy: jobs that work in {place} are left, `cancel --runs` with it reaches them"
        )
    found = [launch for launch in found if not launch.elsewhere]
    jobs = [job for launch in found for job in launch.jobs().values() if job in live]
    if not jobs:
        print("no jobs to cancel")
        return 0
    working = sum(not live[job].waits for job in jobs)
    if not (args.yes or confirmed(f"cancel {len(jobs)} jobs, of which {working} are at work?")):
        print("nothing was cancelled")
        return 0
    client.cancel(jobs)
    print(f"cancelled {len(jobs)} jobs; finished runs are kept, the others go on when run again")
    return 0


def _launches(workspace: Workspace, name: str | None) -> list[Launch]:
    every = list(Launches(workspace.runs))
    found = [
        launch
        for launch in every
        if name is None
        or launch.job_name in (job_name(name), f"ssmll-{name}")
        or launch.folder.name.startswith(name)
    ]
    if name is not None and not found:
        from methods.errors import nearest

        known = {launch.job_name.removeprefix("ssmll-") for launch in every}
        raise UserError(f"no launch of {name!r} in {workspace.runs}{nearest(name, known)}")
    return found


def doctor(args: argparse.Namespace) -> int:
    """Examine the cluster; 1 when something stands in the way."""
    from benchmarks.progress import Progress
    from benchmarks.provenance import packages
    from slurm.doctor import examine, table

    shared = Path(args.runs).resolve() / "slurm"
    wanted, said = site.adopt(profile.load(args.profile))
    for line in said:
        print(line)
    findings = examine(
        wanted,
        shared,
        packages(),
        submit=not args.no_job,
        report=Progress().line,
    )
    print(table(findings))
    return 1 if any(finding.state == "problem" for finding in findings) else 0
