"""Runs whose data is not here any more when a worker starts: recorded as failed, and the others go on.

A job may wait in a queue for days, and a dataset's folder may be moved or removed meanwhile. The runs have
their identities already, from the plan that the launcher has remembered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from benchmarks.launch.environment import launch_name
from benchmarks.launch.failures import failed_in, record
from benchmarks.launch.work_order import WorkOrder
from benchmarks.plan.earlier import every
from benchmarks.plan.jobs import Job
from benchmarks.plan.summary import PlannedRun
from methods.errors import UserError
from results.errors import StoreError
from slurm.protocol import place_in_group


def resolved(order: WorkOrder, bundle: int | None, report: Callable[[str], None]) -> list[Job]:
    """The order's runs, resolved; those of a dataset that cannot be opened are recorded as failed.

    In a group of processes all or nothing: what one node sees another may not, and ranks go by one list.

    Args:
        order: what to do.
        bundle: number of the bundle whose runs are recorded; None for all.
        report: gets a line on each run that is recorded.

    Raises:
        UserError: none of them can be resolved.
    """
    rank, world = place_in_group()
    try:
        return order.resolve()
    except UserError as error:
        whole = error
    planned = {run.run_id: run for plan in reversed(every(order.workspace)) for run in plan.runs if run.spec}
    datasets: dict[str, list[str]] = {}
    for run_id in order.run_ids:
        if run_id in planned:
            datasets.setdefault(planned[run_id].dataset, []).append(run_id)
    jobs: list[Job] = []
    lost: dict[str, UserError] = {}
    if len(datasets) == 1 or world > 1:
        lost = {run_id: whole for run_ids in datasets.values() for run_id in run_ids}
        datasets = {}
    for name, run_ids in datasets.items():
        try:
            jobs += dataclasses.replace(order, run_ids=tuple(run_ids)).resolve(name)
        except UserError as error:
            lost |= dict.fromkeys(run_ids, error)
    mine = set(order.run_ids)
    if bundle is not None:
        mine = {run_id for part in order.bundles[bundle : bundle + 1] for run_id in part.run_ids}
    for run_id, why in lost.items() if rank == 0 else ():
        if run_id in mine:
            _record(order, planned[run_id], why, report)
    if not jobs:
        raise whole
    return jobs


def _record(order: WorkOrder, run: PlannedRun, error: UserError, report: Callable[[str], None]) -> None:
    directory = run.directory(order.workspace)
    launch = launch_name(order.launch)
    if (directory / "result.json").exists() or failed_in(directory, launch):
        return
    try:
        if record(order.workspace, run.spec, directory, error, launch):
            report(f"failed: {run.title}: {error}")
    except (OSError, StoreError) as problem:
        report(f"failed: {run.title}: {error}; it cannot be recorded: {problem}")
