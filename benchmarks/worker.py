"""A worker process: takes runs and stages of a plan until none is left.

Workers share nothing but the file system. Each walks the same list and takes what no living process
holds, so a worker that dies leaves work for the others and two launchers never run one run twice.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from benchmarks.grid import load
from benchmarks.plan import Job, Stage, resolve
from benchmarks.provenance import code_state
from benchmarks.runner import Execution, Options, fail_dependent, stage_done
from benchmarks.trainer import Interrupted
from benchmarks.workspace import Workspace

POLL_SECONDS = 0.3
EXIT_INTERRUPTED = 75
_stop = False


def _stopping(launcher: int) -> bool:
    """Asked to stop, or the launcher that would have asked is gone."""
    return _stop or os.getppid() != launcher


def _report(line: str) -> None:
    try:
        print(line, flush=True)
    except BrokenPipeError:  # the launcher is gone; `_stopping` sees it at the next step
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the end


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _stop
    if _stop:  # a second signal does not wait for the step to end
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
    """Walks a plan; see the module's docstring."""

    def __init__(self, jobs: list[Job], workspace: Workspace, execution: Execution) -> None:
        self.workspace, self.execution = workspace, execution
        self.launch = execution.options.launch
        self.pending = order(jobs)

    def work(self) -> None:
        """Until nothing is left to do, or a signal came."""
        while self.pending:
            progressed = False
            for task in list(self.pending):
                if self.execution.options.should_stop():
                    raise Interrupted
                if self._take(*task):
                    self.pending.remove(task)
                    progressed = True
            if not progressed:
                time.sleep(POLL_SECONDS)

    def _take(self, stage: Stage | None, job: Job) -> bool:
        """Do a task if it can be done now; True when it needs no more attention."""
        if stage is not None:
            if failed_in(stage.directory(self.workspace), self.launch):
                return True
            return self.execution.stage(stage, job) != "busy"
        directory = job.directory(self.workspace)
        if failed_in(directory, self.launch):
            return True
        for needed in job.stages:
            place = needed.directory(self.workspace)
            if not stage_done(place):
                why = failed_in(place, self.launch)
                if why is None:
                    return False
                fail_dependent(
                    self.workspace, job.spec, directory, f"{needed.kind} failed: {why}", self.launch
                )
                return True
        return self.execution.run(job) != "busy"


def main() -> int:
    """Entry point of `python -m benchmarks.worker PLAN`."""
    code_state()  # read now: the working copy may change while these imports are at work
    plan: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    launcher = os.getppid()
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)
    torch.set_num_threads(plan["threads"])
    os.environ["SSMLL_COMMAND"] = plan["command"]
    workspace = Workspace(Path(plan["data"]), Path(plan["runs"]))
    wanted = set(plan["run_ids"])
    jobs = resolve(
        load(plan["grid"]), workspace, progress=lambda title: lambda done, total: None, workers=1
    )
    jobs = [job for job in jobs if job.spec.run_id in wanted]
    missing = wanted - {job.spec.run_id for job in jobs}
    if missing:
        print(f"the grid changed while it was running: {len(missing)} runs are no longer in it",
              file=sys.stderr)  # fmt: skip
        return 2
    options = Options(
        checkpoint_seconds=plan["checkpoint_seconds"], launch=plan["launch"],
        report=_report, should_stop=lambda: _stopping(launcher),
    )  # fmt: skip
    # accelerate keeps its precision in process-wide state: runs of one precision at a time.
    try:
        Worker(jobs, workspace, Execution(workspace, plan["precision"], options)).work()
    except (Interrupted, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
