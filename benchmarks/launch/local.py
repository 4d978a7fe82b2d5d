"""Runs a plan on this machine with N workers of one or more processes each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.launch import environment
from benchmarks.launch.work_order import NAME, WorkOrder
from benchmarks.plan.copying import copy_grid
from benchmarks.plan.grid import Grid
from benchmarks.plan.jobs import Job, process_kinds
from benchmarks.provenance import cores
from benchmarks.signals import Stopped, stopped_by
from benchmarks.training import accelerate_variables
from benchmarks.workspace import Workspace
from methods.errors import UserError
from slurm.protocol import EXIT_BROKEN, EXIT_LOST

RESPAWNS = 2
"""How often a worker that was killed is started again."""
GRACE_SECONDS = 15.0
"""How long the other processes of a group may take to end after one of them has ended badly."""
POLL_SECONDS = 0.2
WORKER = "benchmarks.launch.worker"


@dataclass(frozen=True)
class Local:
    """How runs are executed on this machine.

    Attributes:
        workers: process groups that take runs side by side.
        processes: processes of a group, which train one run together.
        threads: CPU threads of each process.
        checkpoint_seconds: seconds between checkpoints inside an epoch.
        hang_seconds: seconds without progress after which a process group counts as hung.
        strategy: overrides the recipes' way of spreading a step over processes; None leaves it.
        keep_weights: whether runs keep their weights: "", "all" or "best".
    """

    workers: int
    processes: int
    threads: int
    checkpoint_seconds: float
    hang_seconds: float
    strategy: str | None = None
    keep_weights: str = ""

    @classmethod
    def default(
        cls,
        workers: int | None,
        processes: int,
        checkpoint_seconds: float,
        hang_seconds: float,
        strategy: str | None = None,
        report: Callable[[str], None] = lambda line: None,
        keep_weights: str = "",
    ) -> Local:
        """One process per GPU; without GPUs one process per core, because small models scale best so.

        Args:
            workers: see the class; None for as many as the machine has room for.
            processes: see the class.
            checkpoint_seconds: see the class.
            hang_seconds: see the class.
            strategy: see the class.
            report: gets a line when the environment asks for more threads than there are cores.
            keep_weights: see the class.

        Raises:
            UserError: a group wants more GPUs than there are; a variable would change trainings.
        """
        accelerate_variables.check(strategy)
        gpus = _gpus()
        if gpus and processes > gpus:
            raise UserError(f"--processes {processes}: this machine has {gpus} GPUs")
        count = workers or max(1, (gpus or min(cores(), 8)) // processes)
        threads = environment.threads_of_user(report)
        if threads is None:
            threads = max(1, cores() // (count * processes))
        return cls(count, processes, threads, checkpoint_seconds, hang_seconds, strategy, keep_weights)

    def order(
        self, grid: Path, jobs: Sequence[Job], workspace: Workspace, launcher: int | None = None
    ) -> WorkOrder:
        """What workers on this machine are asked to do.

        Args:
            grid: the launch's copy of the grid's file.
            jobs: those of its runs that are executed.
            workspace: where data and runs lie.
            launcher: process id without which the workers stop; None for none.
        """
        return WorkOrder.make(
            grid,
            workspace,
            jobs,
            module=WORKER,
            strategy=self.strategy,
            threads=self.threads,
            checkpoint_seconds=self.checkpoint_seconds,
            hang_seconds=self.hang_seconds,
            launcher=launcher,
            keep_weights=self.keep_weights,
        )

    def execute(
        self, grid: Grid, jobs: Sequence[Job], workspace: Workspace, report: Callable[[str], None]
    ) -> None:
        """Execute runs; what happened to them is in the store.

        Raises:
            KeyboardInterrupt: raised again after the workers have saved and ended.
            Stopped: SIGTERM or SIGUSR2 came; raised after the workers have saved and ended.
            UserError: a file of the grid or of a user's method changed since the plan was made.
        """
        with (
            stopped_by(signal.SIGTERM, signal.SIGUSR2),
            tempfile.TemporaryDirectory(prefix="ssmll-plan-") as folder,
        ):
            copy = copy_grid(grid, jobs, Path(folder) / "copies")
            for number, kind in enumerate(process_kinds(jobs)):
                group = [job for job in jobs if job.process_kind == kind]
                place = Path(folder) / str(number)
                place.mkdir()
                self._execute(self.order(copy, group, workspace, os.getpid()), place, report)

    def _execute(self, order: WorkOrder, folder: Path, report: Callable[[str], None]) -> None:
        path = folder / NAME
        order.write(path)
        command = [sys.executable, *order.argv(path)]
        count = min(self.workers, len(order.run_ids))
        workers = [_Worker(number, command, folder, self, report) for number in range(count)]
        try:
            while True:
                # Poll every worker: polling also restarts one that died.
                working = [worker.poll_and_restart() for worker in workers]
                if not any(working):
                    break
                time.sleep(POLL_SECONDS)
        except (KeyboardInterrupt, Stopped):
            report("stopping: runs are saved at their next step")
            for worker in workers:
                worker.ask_to_stop()
            for worker in workers:
                worker.wait_or_kill()
            raise


class _Worker:
    """A process group that is started again a few times if it dies.

    Args:
        number: number of the worker on this machine.
        command: what each process of the group executes.
        folder: for the files by which the processes of a group meet.
        local: numbers of processes and threads.
        report: gets the lines that the processes print.
    """

    def __init__(
        self,
        number: int,
        command: Sequence[str],
        folder: Path,
        local: Local,
        report: Callable[[str], None],
    ) -> None:
        self.number, self.command, self.folder = number, command, folder
        self.local, self.report = local, report
        self.deaths, self.starts = 0, 0
        self._start()

    def _start(self) -> None:
        self.starts += 1
        # Each start has a file of its own: two groups can never meet by accident, as with ports.
        meeting, gpus = self.folder / f"rendezvous-{self.number}-{self.starts}", _gpus()
        self.processes = [
            subprocess.Popen(
                self.command,
                env=environment.of_worker(
                    self.number,
                    rank,
                    processes=self.local.processes,
                    threads=self.local.threads,
                    gpus=gpus,
                    meeting=meeting,
                ),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                # A session of its own: Ctrl-C reaches only the launcher, which stops the workers once.
                start_new_session=True,
            )
            for rank in range(self.local.processes)
        ]
        self.readers = [
            threading.Thread(target=self._read, args=(process,), daemon=True) for process in self.processes
        ]
        for reader in self.readers:
            reader.start()
        self.first_end = 0.0

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.report(line.rstrip("\n"))

    def poll_and_restart(self) -> bool:
        """Look at the processes; start them again if the group broke or one of them was killed.

        Returns:
            Whether the worker is still at work.
        """
        codes = [process.poll() for process in self.processes]
        if None in codes:
            self._end_together([code for code in codes if code is not None])
            return True
        for reader in self.readers:
            reader.join(timeout=5)
        if EXIT_BROKEN in codes:  # a run failed, which is recorded; the others go on
            self.report(f"worker {self.number}: its processes start again")
            self._start()
            return True
        killed = [-code for code in codes if code is not None and code < 0]
        if (killed or EXIT_LOST in codes) and self.deaths < RESPAWNS:
            self.deaths += 1
            why = f"was killed by signal {killed[0]}" if killed else "lost a process"
            self.report(f"worker {self.number} {why}; starting it again")
            self._start()
            return True
        return False

    def _end_together(self, ended: list[int]) -> None:
        """Kill the rest of a group some time after one of its processes has ended badly."""
        if all(code == 0 for code in ended):
            return
        self.first_end = self.first_end or time.monotonic()
        if time.monotonic() - self.first_end > GRACE_SECONDS:
            for process in self.processes:
                process.kill()

    def ask_to_stop(self) -> None:
        """Ask the processes to save and end."""
        for process in self.processes:
            process.terminate()

    def wait_or_kill(self) -> None:
        """Wait until the processes have ended; kill those that take longer than a minute."""
        end = time.monotonic() + 60
        for process in self.processes:
            try:
                process.wait(timeout=max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
