"""Executes runs and shared stages in this process: claims them, watches, and records how they end."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext, suppress

from benchmarks.launch.failures import GroupBroken, Hung, failure
from benchmarks.launch.tasks import Options, RunTask, StageTask, Task, TaskContext
from benchmarks.plan.jobs import Job
from benchmarks.plan.stages import Stage
from benchmarks.training.group import lost_peer
from benchmarks.training.strategy import Strategy
from benchmarks.training.watch import START_SECONDS
from benchmarks.workspace import Workspace
from methods.errors import UserError
from results.errors import LeaseLostError, StoreError
from results.lease import MemberLease, seconds_to_live
from results.store import Lease
from slurm.protocol import EXIT_BROKEN, EXIT_LOST


def require_folder(workspace: Workspace) -> None:
    """Refuse to go on where the folder of runs was moved or removed meanwhile.

    Raises:
        UserError: it is gone.
    """
    if not workspace.runs.is_dir():
        raise UserError(
            f"{workspace.runs}: the folder of runs was moved or removed while runs were executed; what is "
            "finished is in it, and the same command with --runs and its present place goes on"
        )


class Execution:
    """Executes runs and stages in this process. All of them share one precision and one strategy.

    In a group of processes rank 0 claims what is done next (`run`, `stage`) and broadcasts its number;
    the others `join`.

    Args:
        workspace: where results go.
        strategy: processes, device and precision; one per process, because accelerate keeps them in
            process-wide state.
        options: see `Options`.
    """

    def __init__(self, workspace: Workspace, strategy: Strategy, options: Options) -> None:
        self.workspace, self.strategy, self.options = workspace, strategy, options
        self.group, self.accelerator = strategy.group, strategy.accelerator
        with suppress(OSError):  # it may not be written to: each run says so
            workspace.runs.mkdir(parents=True, exist_ok=True)
        self._has_folder = workspace.runs.is_dir()
        self._context = TaskContext(workspace, strategy, options)

    def run(self, job: Job, number: int = 0) -> str:
        """Execute a run whose stages are done; called on rank 0.

        Args:
            job: the run.
            number: tells the group's other processes which run it is.

        Returns:
            "done", "failed" (reported, and recorded in the run's directory if that is possible), or "busy"
            (another process has it).

        Raises:
            GroupBroken: it failed, and the group's communication with it.
        """
        return self._claim(RunTask(self._context, job), number)

    def stage(self, stage: Stage, job: Job, number: int = 0) -> str:
        """Compute a shared stage with the data of a run that needs it; otherwise as `run`."""
        return self._claim(StageTask(self._context, stage, job), number)

    def join(self, stage: Stage | None, job: Job, generation: int) -> None:
        """Take part in what rank 0 has claimed; called on the other ranks.

        Args:
            stage: the stage, or None for the run.
            job: the run.
            generation: number of rank 0's lease.

        Raises:
            GroupBroken: as for `run`.
        """
        task = RunTask(self._context, job) if stage is None else StageTask(self._context, stage, job)
        self._execute(task, MemberLease(task.directory, generation))

    def _claim(self, task: Task, number: int) -> str:
        """Execute a task unless it is done or another process holds its lease.

        Raises:
            UserError: the folder of runs is gone.
        """
        if self._has_folder:  # a claim would make it anew, at a place that was left
            require_folder(self.workspace)
        if task.is_done():
            return "done"
        try:
            lease = self.workspace.store.claim(task.directory, task.claim_record, ttl=seconds_to_live())
        except (OSError, StoreError) as error:  # a full disk, somebody else's folder: the others go on
            self.options.report(f"failed: {task.title}: it cannot be begun: {error}")
            return "failed"
        if lease is None:
            return "busy"
        with lease:
            if task.is_done():  # finished while we waited for the lease
                return "done"
            if task.together:
                self.group.broadcast(number, lease.generation)
            return self._execute(task, lease)

    def _execute(self, task: Task, lease: Lease | MemberLease) -> str:
        """Compute a task; an error is recorded with it, and the next task can be done."""
        try:
            with self._watching(task, lease):
                task.compute(lease)
        except Exception as error:
            in_group = self.group.world > 1 and task.together
            if in_group and lost_peer(error):  # the run is not at fault: it is continued later
                self.options.report(f"a process of the group is gone: {task.title}")
                raise GroupBroken(EXIT_LOST) from None
            if isinstance(error, LeaseLostError) or not self._record(task, lease, error):
                return self._given_up(task, in_group)
            if in_group:
                raise GroupBroken(EXIT_BROKEN) from None
            return "failed"
        return "done"

    def _given_up(self, task: Task, in_group: bool) -> str:
        """Leave a task to the process that has taken it over, as this one has not moved for too long."""
        if self.group.is_main:
            gone = not task.directory.is_dir()
            why = "its folder was moved or removed" if gone else "another process took it over"
            self.options.report(f"given up, {why}: {task.title}")
        if in_group:  # the ranks may be at different places
            raise GroupBroken(EXIT_LOST) from None
        return "busy"

    def _watching(self, task: Task, lease: Lease | MemberLease) -> AbstractContextManager[None]:
        """Watch the group for hanging; what rank 0 does alone is short and not watched."""
        if not task.together:
            return nullcontext()

        def hung(line: str) -> None:
            time.sleep(self.group.rank)  # all ranks see it at once; the first of them records it
            self._record(task, lease, Hung(line))
            # The main thread may wait in a collective for ever: only the process can end it.
            os._exit(EXIT_BROKEN)

        limit = self.options.hang_seconds
        return self.group.watch.watching(task.directory, lease.generation, limit, hung, start=START_SECONDS)

    def _record(self, task: Task, lease: Lease | MemberLease, error: Exception) -> bool:
        """Write the cause of a failure, unless it is recorded already, and report it.

        Returns:
            Whether the failure is this attempt's: not if another process has taken the task over.
        """
        known = self.group.world == 1 or isinstance(error, Hung)
        rank = "" if known else f"rank {self.group.rank}: "
        line = f"{rank}{type(error).__name__}: {error}"
        try:
            record = failure(error, self.options.launch, rank)
            if self.workspace.store.write_failure(task.directory, lease, record):
                self.options.report(f"failed: {task.title}: {line}")
        except LeaseLostError:
            return False
        except OSError as full:  # no room for the record either: the run counts as dead
            self.options.report(f"failed: {task.title}: {line}; it cannot be recorded: {full}")
        return True
