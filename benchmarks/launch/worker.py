"""A worker process: executes the runs and stages of a work order until none is left.

    python -m benchmarks.launch.worker PLAN [BUNDLE]

Workers share nothing but the file system. All walk the same list, and each takes what no living process
holds: a worker that dies leaves its work to the others, and two launchers never execute one run twice.

A worker is one process or a group of them, see `benchmarks.training.group`. In a group the first process
walks the list and the others follow it.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

import torch

from benchmarks.launch.environment import launch_name, record_command
from benchmarks.launch.execution import Execution, Options
from benchmarks.launch.failures import GroupBroken, fail_dependent, failed_in
from benchmarks.launch.memory import keep_large_blocks
from benchmarks.launch.unresolved import resolved
from benchmarks.launch.work_order import WorkOrder
from benchmarks.plan.jobs import Job, process_kinds
from benchmarks.plan.product_code import loaded
from benchmarks.plan.stages import Stage
from benchmarks.provenance import code_state
from benchmarks.signals import STOP_SIGNALS
from benchmarks.training.group import Group, lost_peer
from benchmarks.training.strategy import make
from benchmarks.training.trainer import Interrupted
from benchmarks.workspace import Workspace
from methods.errors import UserError
from results.errors import StoreError
from results.lease import DEFAULT_TTL
from results.text import listed, replace_signs
from slurm.protocol import EXIT_LOST, EXIT_STOPPED

POLL_SECONDS = 0.3
LEAVE_SECONDS = 2 * DEFAULT_TTL
"""How long a bundle's worker waits for runs held by others; a dead holder's lease expires sooner."""
DRAWS = 8
"""How often a place to go on is drawn; in a list of many kinds it may be of the wrong one."""
ORPHAN_SECONDS = 30.0
"""How long a process may take to end by itself after its launcher has died."""


class StopRequest:
    """Whether this process was asked to stop, or has lost the launcher that would ask it.

    Args:
        launcher: process id of the parent; None for none.
    """

    def __init__(self, launcher: int | None) -> None:
        self.launcher, self.signalled = launcher, False

    def listen(self) -> None:
        """Take the signals that ask to stop, and end this process some time after its launcher is gone."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        if self.launcher is not None:
            threading.Thread(target=self._end_without_launcher, daemon=True).start()

    def __call__(self) -> bool:
        """Whether to stop; called after every step."""
        return self.signalled or self._orphaned()

    def _orphaned(self) -> bool:
        return self.launcher is not None and os.getppid() != self.launcher

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # A second Ctrl-C does not wait for the step to end. SLURM may send its signal twice.
        if self.signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signalled = True

    def _end_without_launcher(self) -> None:
        """End an orphaned process wherever it waits.

        A process in training saves and ends by itself. One that waits for a peer, which may be gone
        too, would wait for ever.
        """
        while not self._orphaned():
            time.sleep(ORPHAN_SECONDS / 10)
        time.sleep(ORPHAN_SECONDS)
        os._exit(EXIT_LOST)


def _report(line: str) -> None:
    try:
        print(line, flush=True)
    except BrokenPipeError:  # the launcher is gone; `StopRequest` notices it at the next step
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the end


class Worker:
    """Walks the tasks of a work order; see the module's docstring.

    Args:
        tasks: stages and runs, in the order in which they are tried.
        workspace: where results go.
        execution: executes them.
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
        self._random = random.Random()  # of its own: no training sees it
        self._failed: set[str] = set()  # stages, here, whether or not that could be recorded

    def work(self) -> None:
        """Work until nothing is left.

        Raises:
            Interrupted: the process was asked to stop.
        """
        if not self.group.is_main:
            return self._follow()
        pending = dict(enumerate(self.tasks))
        moved = time.monotonic()
        while pending:
            progressed = False
            for number in self._walk(pending):
                if self.execution.options.should_stop():
                    self._dismiss()
                    raise Interrupted
                if self._take(*pending[number], number):
                    del pending[number]
                    progressed = True
            if progressed:
                moved = time.monotonic()
            elif self.leave_after is not None and time.monotonic() - moved > self.leave_after:
                self._leave(list(pending.values()))
                break
            else:
                time.sleep(POLL_SECONDS)
        return self._dismiss()

    def _walk(self, pending: Mapping[int, tuple[Stage | None, Job]]) -> Iterator[int]:
        """The numbers of the pending tasks, each once, in their order but for one thing.

        Many processes that walk one list in one order would look at what the others hold before each claim.
        So who meets a run that is held goes on at a place drawn at random, among the runs of the same kind,
        because the longest kind comes first.
        """
        left = list(pending)
        place = 0
        while left:
            number = left.pop(place)
            stage, job = pending[number]
            yield number
            if place == len(left):
                place = 0
            if number in pending and stage is None and left:
                drawn = (self._random.randrange(len(left)) for _ in range(DRAWS))
                place = next((k for k in drawn if _alike(pending[left[k]], job)), place)

    def _leave(self, pending: list[tuple[Stage | None, Job]]) -> None:
        names = [job.spec.title for stage, job in pending if stage is None]
        if names:
            self.execution.options.report(f"left to the processes that hold them: {listed(names, 5)}")

    def _follow(self) -> None:
        while True:
            try:
                number, generation = self.group.broadcast(-1, -1)
            except RuntimeError as error:
                if not lost_peer(error):
                    raise
                raise GroupBroken(EXIT_LOST) from None
            if number < 0:
                return
            stage, job = self.tasks[number]
            self.execution.join(stage, job, generation)

    def _dismiss(self) -> None:
        """Tell the other processes of the group that nothing follows."""
        self.group.broadcast(-1, -1)

    def _take(self, stage: Stage | None, job: Job, number: int) -> bool:
        """Do a task if it can be done now; True when nothing is left to do about it."""
        if stage is not None:
            if failed_in(stage.directory(self.workspace), self.launch):
                return True
            outcome = self.execution.stage(stage, job, number)
            if outcome == "failed":
                self._failed.add(stage.stage_id)
            return outcome != "busy"
        directory = job.directory(self.workspace)
        # First: in the end each of many processes has met every run, and most were done by others.
        if os.path.lexists(directory / "result.json") or failed_in(directory, self.launch):
            return True
        for needed in job.stages:
            if not needed.is_done(self.workspace):
                why = failed_in(needed.directory(self.workspace), self.launch)
                if why is None and needed.stage_id in self._failed:
                    why = "its failure could not be recorded"
                if why is None:
                    return False
                self._fail(job, directory, f"{needed.kind} failed: {why}")
                return True
        return self.execution.run(job, number) != "busy"

    def _fail(self, job: Job, directory: Path, why: str) -> None:
        """Record a run as failed because of a stage."""
        try:
            fail_dependent(self.workspace, job.spec, directory, why, self.launch)
        except (OSError, StoreError) as error:
            title = job.spec.title
            self.execution.options.report(f"failed: {title}: {why}; it cannot be recorded: {error}")


def _alike(task: tuple[Stage | None, Job], job: Job) -> bool:
    """Whether a task is a run that takes about as long as another."""
    return task[0] is None and task[1].cell.kind == job.cell.kind


def work(
    order: WorkOrder,
    launcher: int | None,
    report: Callable[[str], None] = _report,
    bundle: int | None = None,
) -> int:
    """Work on an order as one process of the group that the environment describes.

    Args:
        order: what to do.
        launcher: process id of the parent without which this process stops; None for none.
        report: called with one line of progress.
        bundle: number of the order's bundle to work on; None for all runs.

    Returns:
        0, or `EXIT_STOPPED` when it was asked to stop.

    Raises:
        UserError: the grid has changed, or the environment does not fit.
        GroupBroken: a process of the group failed; the cause is recorded.
    """
    should_stop = StopRequest(launcher)
    should_stop.listen()
    keep_large_blocks()
    if order.threads:
        torch.set_num_threads(order.threads)
    record_command(order.command)
    tasks = order.tasks(resolved(order, bundle, report), bundle)
    code_state(), loaded()  # now: the working copy may change while the runs are executed
    try:
        group = Group.join(should_stop, report)
    except KeyboardInterrupt:
        return EXIT_STOPPED
    _agree(order, group)
    options = Options(
        checkpoint_seconds=order.checkpoint_seconds,
        launch=launch_name(order.launch),
        report=report,
        should_stop=should_stop,
        hang_seconds=order.hang_seconds,
        keep_weights=order.keep_weights,
    )
    # accelerate keeps precision and strategy in process-wide state: one process kind at a time.
    ((precision, strategy),) = process_kinds([job for _, job in tasks])
    try:
        execution = Execution(order.workspace, make(strategy, precision, group), options)
        leave_after = None if bundle is None else LEAVE_SECONDS
        Worker(tasks, order.workspace, execution, leave_after).work()
    except (Interrupted, KeyboardInterrupt):
        return EXIT_STOPPED
    group.leave()
    return 0


def _agree(order: WorkOrder, group: Group) -> None:
    """Compare what the processes of a group were asked to do: under torchrun each has planned by itself.

    Raises:
        UserError: in all of them, where one has another plan or other code than rank 0.
    """
    asked = group.all_gather_object((order.run_ids, dict(order.planned), dict(order.sources)))
    others = [rank for rank, each in enumerate(asked) if each != asked[0]]
    if others:
        raise UserError(
            f"rank {others[0]} has planned other runs, or with other code, than rank 0: the grid, what it "
            "reads or the code changed while the processes started; nothing was run: start them again"
        )


def main() -> int:
    """Entry point of `python -m benchmarks.launch.worker PLAN [BUNDLE]`."""
    path, *bundle = sys.argv[1:]
    replace_signs(sys.stdout, sys.stderr)
    try:
        order = WorkOrder.read(Path(path))
        # A local worker takes its launcher from the order: its parent of now may be another process
        # already, if the launcher has died.
        launcher = os.getppid() if bundle else order.launcher
        code = work(order, launcher, bundle=int(bundle[0]) if bundle else None)
    except (UserError, StoreError) as error:
        _report(f"error: {error}")
        code = 2
    except OSError as error:  # of the system, outside of any run: no room, no right, a faulty disk
        _report(f"error: {error}")
        code = 1
    except GroupBroken as broken:
        code = broken.code
    if code:
        sys.stdout.flush()
        # A normal end could wait for ever for what is left of a group's communication, or abort.
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
