"""A worker process: takes runs and stages of a plan until none is left.

Workers share nothing but the file system. Each walks the same list and takes what no living process
holds, so a worker that dies leaves work for the others and two launchers never run one run twice.

A worker is one process or a group of them, see `benchmarks.training.group`. In a group the first process
walks the list and the others follow it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from benchmarks.launch.execution import Execution, Options
from benchmarks.launch.failures import GroupBroken, fail_dependent
from benchmarks.launch.memory import keep_large_blocks
from benchmarks.plan.grid import load, with_strategy
from benchmarks.plan.jobs import Job, Stage, process_kinds, resolve
from benchmarks.progress import silent
from benchmarks.provenance import code_state
from benchmarks.signals import STOP_SIGNALS
from benchmarks.training.group import Group, lost_peer
from benchmarks.training.strategy import make
from benchmarks.training.trainer import Interrupted
from benchmarks.workspace import Workspace
from methods.errors import UserError
from results.lease import DEFAULT_TTL
from slurm.protocol import EXIT_LOST, EXIT_STOPPED

POLL_SECONDS = 0.3
LEAVE_SECONDS = 2 * DEFAULT_TTL
"""Time after which a bundle's worker leaves runs to whoever holds them: a dead holder's lease has
run out by then."""
ORPHAN_SECONDS = 30.0
"""Time that a process has to end by itself after its launcher has died."""
_stop = False


def _stopping(launcher: int | None) -> bool:
    """Asked to stop, or the launcher that would have asked is gone."""
    return _stop or (launcher is not None and os.getppid() != launcher)


def _end_without(launcher: int) -> None:
    """End this process some time after its launcher is gone, wherever it waits.

    A process in training saves and ends by itself; one that waits for another of its group, which
    may be gone too, would wait for ever.
    """
    while os.getppid() == launcher:
        time.sleep(ORPHAN_SECONDS / 10)
    time.sleep(ORPHAN_SECONDS)
    os._exit(EXIT_LOST)


def _report(line: str) -> None:
    try:
        print(line, flush=True)
    except BrokenPipeError:  # the launcher is gone; `_stopping` sees it at the next step
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the end


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _stop
    # A second Ctrl-C does not wait for the step to end; SLURM may well send a signal twice.
    if _stop and number == signal.SIGINT:
        raise KeyboardInterrupt
    _stop = True


def order(jobs: list[Job]) -> list[tuple[Stage | None, Job]]:
    """Stages first, then runs, the longest kind first, so that no long run starts last."""
    seen: set[str] = set()
    tasks: list[tuple[Stage | None, Job]] = []
    longest_first = {"semi": 0, "labelled": 1, "fit": 2}
    jobs = sorted(jobs, key=lambda job: longest_first[job.cell.kind])
    for job in jobs:
        for stage in job.stages:
            if stage.stage_id not in seen:
                seen.add(stage.stage_id)
                tasks.append((stage, job))
    return tasks + [(None, job) for job in jobs]


def chosen(jobs: list[Job], part: dict[str, Any]) -> tuple[list[Job], list[tuple[Stage | None, Job]]]:
    """What a bundle holds: the runs it is about, and the tasks.

    A bundle of runs makes stages that are missing too: their own jobs may have been lost.
    """
    stages, runs = set(part["stage_ids"]), set(part["run_ids"])
    found: dict[str, tuple[Stage | None, Job]] = {}
    for job in jobs:
        for stage in job.stages:
            if stage.stage_id in stages:
                found.setdefault(stage.stage_id, (stage, job))
    mine = [job for job in jobs if job.spec.run_id in runs]
    tasks = list(found.values()) + order(mine)
    return [job for _, job in tasks], tasks


def failed_in(directory: Path, launch: str) -> str | None:
    """The error recorded in a directory during this launch, or None; earlier ones are retried."""
    try:
        record = json.loads((directory / "failure.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if record.get("launch") != launch:
        return None
    return f"{record.get('type')}: {record.get('message')}"


class Worker:
    """Walks a plan; see the module's docstring.

    Args:
        tasks: stages and runs, in the order in which they are tried.
        workspace: where results go.
        execution: what executes them.
        leave_after: seconds without progress after which runs that others hold are left to them;
            None waits for as long as they are held.
    """

    def __init__(
        self,
        tasks: list[tuple[Stage | None, Job]],
        workspace: Workspace,
        execution: Execution,
        leave_after: float | None = None,
    ) -> None:
        self.workspace, self.execution, self.group = workspace, execution, execution.group
        self.launch = execution.options.launch
        self.tasks, self.leave_after = tasks, leave_after

    def work(self) -> None:
        """Until nothing is left to do, or a signal came."""
        if not self.group.is_main:
            return self._follow()
        pending = list(enumerate(self.tasks))
        moved = time.monotonic()
        while pending:
            progressed = False
            for entry in list(pending):
                if self.execution.options.should_stop():
                    self._dismiss()
                    raise Interrupted
                number, (stage, job) = entry
                if self._take(stage, job, number):
                    pending.remove(entry)
                    progressed = True
            if progressed:
                moved = time.monotonic()
            elif self.leave_after is not None and time.monotonic() - moved > self.leave_after:
                self._leave(pending)
                break
            else:
                time.sleep(POLL_SECONDS)
        return self._dismiss()

    def _leave(self, pending: list[tuple[int, tuple[Stage | None, Job]]]) -> None:
        names = [job.spec.title for _, (stage, job) in pending if stage is None]
        if names:
            self.execution.options.report(
                f"left to the processes that hold them: {', '.join(names[:5])}"
                + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            )

    def _follow(self) -> None:
        while True:
            try:
                number, generation = self.group.told(-1, -1)
            except RuntimeError as error:
                if not lost_peer(error):
                    raise
                raise GroupBroken(EXIT_LOST) from None
            if number < 0:
                return
            stage, job = self.tasks[number]
            self.execution.join(stage, job, generation)

    def _dismiss(self) -> None:
        """Tell the other processes that nothing follows."""
        self.group.told(-1, -1)

    def _take(self, stage: Stage | None, job: Job, number: int) -> bool:
        """Do a task if it can be done now; True when it needs no more attention."""
        if stage is not None:
            if failed_in(stage.directory(self.workspace), self.launch):
                return True
            return self.execution.stage(stage, job, number) != "busy"
        directory = job.directory(self.workspace)
        if failed_in(directory, self.launch):
            return True
        for needed in job.stages:
            place = needed.directory(self.workspace)
            if not needed.is_done(self.workspace):
                why = failed_in(place, self.launch)
                if why is None:
                    return False
                fail_dependent(
                    self.workspace, job.spec, directory, f"{needed.kind} failed: {why}", self.launch
                )
                return True
        return self.execution.run(job, number) != "busy"


def work(
    plan: dict[str, Any],
    launcher: int | None,
    report: Callable[[str], None] = _report,
    bundle: int | None = None,
) -> int:
    """Work on a plan as one process of the group that the environment describes.

    Args:
        plan: see `benchmarks.launch.local.plan_of`; of a cluster, `benchmarks.launch.bundles`.
        launcher: process id of the parent without which this process stops; None for none.
        report: called with one line of progress.
        bundle: number of the plan's bundle to work on; None for all runs of a plan without bundles.

    Returns:
        0, or `EXIT_STOPPED` when it was asked to stop.

    Raises:
        UserError: the grid has changed, or the environment does not fit.
        GroupBroken: a process of the group failed; the cause is recorded.
    """
    if launcher is not None:
        threading.Thread(target=_end_without, args=(launcher,), daemon=True).start()
    keep_large_blocks()
    code_state()  # read now: the working copy may change while these imports are at work
    for number in STOP_SIGNALS:
        signal.signal(number, _on_signal)
    if plan["threads"]:
        torch.set_num_threads(plan["threads"])
    os.environ["SSMLL_COMMAND"] = plan["command"]
    workspace = Workspace(Path(plan["data"]), Path(plan["runs"]))
    wanted = set(plan["run_ids"])
    part = plan["bundles"][bundle] if bundle is not None else None
    grid = with_strategy(load(plan["grid"]), plan["strategy"])
    jobs = resolve(grid, workspace, progress=silent, workers=1)
    jobs = [job for job in jobs if job.spec.run_id in wanted]
    missing = wanted - {job.spec.run_id for job in jobs}
    if missing:
        raise UserError(f"the grid changed while it was running: {len(missing)} runs are no longer in it")
    if part is None:
        tasks = order(jobs)
    else:
        jobs, tasks = chosen(jobs, part)
    group = Group.join()
    options = Options(
        checkpoint_seconds=plan["checkpoint_seconds"],
        launch=os.environ.get("SSMLL_LAUNCH") or plan["launch"],
        report=report,
        should_stop=lambda: _stopping(launcher),
        hang_seconds=plan["hang_seconds"],
    )
    # accelerate keeps precision and strategy in process-wide state: runs of one kind at a time.
    ((precision, strategy),) = process_kinds(jobs)
    try:
        execution = Execution(workspace, make(strategy, precision, group), options)
        leave_after = LEAVE_SECONDS if part is not None else None
        Worker(tasks, workspace, execution, leave_after).work()
    except (Interrupted, KeyboardInterrupt):
        return EXIT_STOPPED
    group.leave()
    return 0


def main() -> int:
    """Entry point of `python -m benchmarks.launch.worker PLAN [BUNDLE]`."""
    plan: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        if len(sys.argv) > 2:
            code = work(plan, os.getppid(), bundle=int(sys.argv[2]))
        else:
            # Not the parent as it is now: the launcher may be gone already.
            code = work(plan, plan["launcher"])
    except UserError as error:
        _report(f"error: {error}")
        code = 2
    except GroupBroken as broken:
        code = broken.code
    if code:
        sys.stdout.flush()
        # At a normal end, what is left of a group's communication may wait for ever, or abort.
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
