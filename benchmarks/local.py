"""Runs a plan on this machine with N worker processes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.grid import Grid
from benchmarks.plan import Job
from benchmarks.workspace import Workspace

RESPAWNS = 2
REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Local:
    """Local execution.

    Attributes:
        workers: processes that take runs side by side.
        threads: CPU threads of each.
        checkpoint_seconds: time between checkpoints inside an epoch.
    """

    workers: int
    threads: int
    checkpoint_seconds: float

    @classmethod
    def default(cls, workers: int | None, checkpoint_seconds: float) -> Local:
        """One worker a GPU; without one, a worker a core, as small models scale best that way."""
        gpus = _gpus()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        cores = cores or 1
        count = workers or (gpus or min(cores, 8))
        return cls(count, max(1, cores // count), checkpoint_seconds)

    def execute(
        self, grid: Grid, jobs: Sequence[Job], workspace: Workspace, report: Callable[[str], None]
    ) -> None:
        """Execute runs; what happened to them is in the store.

        Raises:
            KeyboardInterrupt: passed on after the workers have saved and ended.
        """
        for precision in sorted({job.cell.recipe.precision for job in jobs}):
            group = [job for job in jobs if job.cell.recipe.precision == precision]
            self._execute(grid, group, precision, workspace, report)

    def _execute(
        self, grid: Grid, jobs: Sequence[Job], precision: str, workspace: Workspace,
        report: Callable[[str], None],
    ) -> None:  # fmt: skip
        plan = {
            "grid": str(grid.path.resolve()), "data": str(workspace.data.resolve()),
            "runs": str(workspace.runs.resolve()), "run_ids": [job.spec.run_id for job in jobs],
            "precision": precision, "threads": self.threads,
            "checkpoint_seconds": self.checkpoint_seconds, "launch": uuid.uuid4().hex,
            "command": shlex.join(sys.argv),
        }  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="ssmll-plan-") as folder:
            path = Path(folder) / "plan.json"
            path.write_text(json.dumps(plan), encoding="utf-8")
            count = min(self.workers, len(jobs))
            workers = [_Process(number, path, self.threads, report) for number in range(count)]
            try:
                while any(worker.running() for worker in workers):
                    time.sleep(0.2)
            except KeyboardInterrupt:
                report("stopping: runs are saved at their next step")
                for worker in workers:
                    worker.stop()
                raise


class _Process:
    """A worker process that is started anew a few times if it dies."""

    def __init__(
        self, number: int, plan: Path, threads: int, report: Callable[[str], None]
    ) -> None:
        self.number, self.plan, self.threads, self.report = number, plan, threads, report
        self.deaths = 0
        self._start()

    def _start(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        environment["PYTHONPATH"] = os.pathsep.join(
            part for part in (str(REPOSITORY), os.environ.get("PYTHONPATH", "")) if part
        )
        gpus = _gpus()
        if gpus and "CUDA_VISIBLE_DEVICES" not in os.environ:
            environment["CUDA_VISIBLE_DEVICES"] = str(self.number % gpus)
        # Its own session: Ctrl-C reaches the launcher alone, which then stops the workers once.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", str(self.plan)], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self.reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.report(line.rstrip("\n"))

    def running(self) -> bool:
        """Whether it is at work; a death that was not asked for is followed by a new start."""
        code = self.process.poll()
        if code is None:
            return True
        self.reader.join(timeout=5)
        if code < 0 and self.deaths < RESPAWNS:
            self.deaths += 1
            self.report(f"worker {self.number} was killed by signal {-code}; starting it again")
            self._start()
            return True
        return False

    def stop(self) -> None:
        """Ask it to save and end; kill it if it does not within a minute."""
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
