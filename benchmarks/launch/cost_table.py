"""A proposal as text: what would be submitted to SLURM, and what it would cost."""

from __future__ import annotations

from collections import Counter

from tabulate import tabulate

from benchmarks.launch.slurm import Proposal
from benchmarks.plan.jobs import Job

_ALIGNED = ("left", "left", "right", "right", "right", "right", "right", "left")


def cost_table(proposal: Proposal) -> str:
    """A row for each dataset and method, then jobs, device-hours and what is not known of them."""
    unit = proposal.options.devices[1]
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in proposal.jobs:
        groups.setdefault((job.spec.dataset, job.cell.label), []).append(job)
    wanted = {job.spec.run_id for job in proposal.submitted}
    rows = [[*names, *_row(proposal, jobs, wanted)] for names, jobs in groups.items()]
    names = ["dataset", "method", "runs", "done", "queued", "to submit", f"{unit}-hours", "measured from"]
    table = tabulate(rows, names, tablefmt="simple", disable_numparse=True, colalign=_ALIGNED)
    return "\n".join([table, *_ending(proposal, unit)])


def _row(proposal: Proposal, jobs: list[Job], wanted: set[str]) -> list[object]:
    """The columns from "runs" on, for the runs of one dataset and method."""
    submitted = [job for job in jobs if job.spec.run_id in wanted]
    estimates = [proposal.estimates.run(job) for job in submitted]
    known = [each.seconds for each in estimates if each.seconds is not None]
    processes = 1 if jobs[0].cell.kind == "fit" else proposal.options.processes
    hours = sum(known) * processes * proposal.options.devices[0] / 3600
    cost = "<0.01" if hours < 0.005 else f"{hours:.2f}"
    return [
        len(jobs),
        sum(proposal.kinds[job.spec.run_id] == "done" for job in jobs),
        sum(job.spec.run_id in proposal.queued for job in jobs),
        len(submitted),
        "" if not submitted else cost if len(known) == len(submitted) else "?",
        ", ".join(dict.fromkeys(each.source for each in estimates)),
    ]


def _ending(proposal: Proposal, unit: str) -> list[str]:
    """The lines below the table."""
    shapes = Counter(proposal.options.shape(bundle) for bundle in proposal.bundles)
    nodes = ", ".join(
        f"{count} of {where} node{'s' * (where > 1)} x {each} task{'s' * (each > 1)}"
        for (where, each), count in shapes.items()
    )
    lines = [f"{len(proposal.bundles)} jobs ({nodes})" if proposal.bundles else "nothing to submit"]
    if proposal.stages:
        lines.append(f"{len(proposal.stages)} shared stages first")
    if proposal.queued_stages:
        lines.append(f"{len(proposal.queued_stages)} shared stages are being made by jobs that are queued")
    if proposal.exhausted:
        lines.append(
            f"{len(proposal.exhausted)} runs left out, begun {proposal.options.max_attempts} times "
            "without an end (`retry` submits them)"
        )
    hours, unknown = proposal.hours()
    remark = f" and {unknown} runs or stages of unknown length (`plan --probe` measures them)"
    lines.append(f"estimated {unit}-hours: {hours:.2f}" + (remark if unknown else ""))
    return lines
