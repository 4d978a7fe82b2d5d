"""Runs a plan on this machine with N workers of one or more processes each."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.plan.grid import Grid
from benchmarks.plan.jobs import Job, process_kinds
from benchmarks.signals import Stopped, stopped_by
from benchmarks.training.group import RENDEZVOUS
from benchmarks.workspace import REPOSITORY, Workspace
from methods.errors import UserError
from slurm.protocol import EXIT_BROKEN, EXIT_LOST

RESPAWNS = 2
GRACE_SECONDS = 15.0
"""Time that a group's processes have to end by themselves after one of them has."""


@dataclass(frozen=True)
class Local:
    """Local execution.

    Attributes:
        workers: groups of processes that take runs side by side.
        processes: processes of a group, which train one run together.
        threads: CPU threads of each process.
        checkpoint_seconds: time between checkpoints inside an epoch.
        hang_seconds: time after which a group that does not move counts as hung.
        strategy: overrides the recipes' way of spreading a step over processes; None leaves it.
    """

    workers: int
    processes: int
    threads: int
    checkpoint_seconds: float
    hang_seconds: float
    strategy: str | None = None

    @classmethod
    def default(
        cls,
        workers: int | None,
        processes: int,
        checkpoint_seconds: float,
        hang_seconds: float,
        strategy: str | None = None,
    ) -> Local:
        """One process a GPU; without one, a process a core, as small models scale best that way.

        Raises:
            UserError: a group wants more GPUs than there are.
        """
        gpus = _gpus()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        cores = cores or 1
        if gpus and processes > gpus:
            raise UserError(f"--processes {processes}: this machine has {gpus} GPUs")
        count = workers or max(1, (gpus or min(cores, 8)) // processes)
        asked = os.environ.get("OMP_NUM_THREADS", "")  # who sets it shares the machine with others
        threads = int(asked) if asked.isdecimal() else max(1, cores // (count * processes))
        return cls(count, processes, threads, checkpoint_seconds, hang_seconds, strategy)

    def execute(
        self, grid: Grid, jobs: Sequence[Job], workspace: Workspace, report: Callable[[str], None]
    ) -> None:
        """Execute runs; what happened to them is in the store.

        Raises:
            KeyboardInterrupt: passed on after the workers have saved and ended.
            Stopped: likewise, after SIGTERM or SIGUSR2.
        """
        with stopped_by(signal.SIGTERM, signal.SIGUSR2):
            for kind in process_kinds(jobs):
                group = [job for job in jobs if job.process_kind == kind]
                self._execute(plan_of(grid, group, workspace, self), report)

    def _execute(self, plan: dict[str, Any], report: Callable[[str], None]) -> None:
        with tempfile.TemporaryDirectory(prefix="ssmll-plan-") as folder:
            path = Path(folder) / "plan.json"
            path.write_text(json.dumps(plan), encoding="utf-8")
            count = min(self.workers, len(plan["run_ids"]))
            workers = [_Worker(number, path, self, report) for number in range(count)]
            try:
                while True:
                    # All are asked each time: asking starts one that has died anew.
                    running = [worker.running() for worker in workers]
                    if not any(running):
                        break
                    time.sleep(0.2)
            except (KeyboardInterrupt, Stopped):
                report("stopping: runs are saved at their next step")
                for worker in workers:
                    worker.ask_to_stop()
                for worker in workers:
                    worker.wait_or_kill()
                raise


def plan_of(grid: Grid, jobs: Sequence[Job], workspace: Workspace, local: Local) -> dict[str, Any]:
    """What a worker is told: plain JSON values."""
    return {
        "grid": str(grid.path.resolve()),
        "data": str(workspace.data.resolve()),
        "runs": str(workspace.runs.resolve()),
        "run_ids": [job.spec.run_id for job in jobs],
        "strategy": local.strategy,
        "threads": local.threads,
        "checkpoint_seconds": local.checkpoint_seconds,
        "hang_seconds": local.hang_seconds,
        "launch": uuid.uuid4().hex,
        "command": shlex.join(sys.argv),
        "launcher": os.getpid(),
    }


class _Worker:
    """A group of processes that is started anew a few times if it dies."""

    def __init__(self, number: int, plan: Path, local: Local, report: Callable[[str], None]) -> None:
        self.number, self.plan, self.local, self.report = number, plan, local, report
        self.deaths, self.starts = 0, 0
        self._start()

    def _start(self) -> None:
        self.starts += 1
        # A file of its own for each start: two groups can never meet by accident, as with ports.
        meeting = self.plan.with_name(f"rendezvous-{self.number}-{self.starts}")
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.launch.worker", str(self.plan)],
                env=self._environment(rank, meeting),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                # Its own session: Ctrl-C reaches the launcher alone, which stops the workers once.
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

    def _environment(self, rank: int, meeting: Path) -> dict[str, str]:
        count = self.local.processes
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.local.threads)}
        environment["PYTHONPATH"] = os.pathsep.join(
            part for part in (str(REPOSITORY), os.environ.get("PYTHONPATH", "")) if part
        )
        gpus = _gpus()
        if gpus and "CUDA_VISIBLE_DEVICES" not in os.environ:
            first = self.number * count
            mine = [str((first + k) % gpus) for k in range(count)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        if count > 1:
            environment |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count),
                RENDEZVOUS: str(meeting),
            }
        return environment

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.report(line.rstrip("\n"))

    def running(self) -> bool:
        """Whether it is at work; a death that was not asked for is followed by a new start."""
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
        """After one process has ended badly, the others wait in vain: give them a moment."""
        if all(code == 0 for code in ended):
            return
        self.first_end = self.first_end or time.monotonic()
        if time.monotonic() - self.first_end > GRACE_SECONDS:
            for process in self.processes:
                process.kill()

    def ask_to_stop(self) -> None:
        """Ask it to save and end."""
        for process in self.processes:
            process.terminate()

    def wait_or_kill(self) -> None:
        """Wait until it has ended; kill it if it does not within a minute."""
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
