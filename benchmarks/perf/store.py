"""The run store under load: many processes that claim the small runs of one store, and how `status` grows.

Processes walk one list of runs with the code of workers (`benchmarks.launch.worker`, leases, atomic writes).
A run sleeps for some time in the place of a training, and stores a result. Measured are:

  claims      runs that were begun in a second, over all processes
  finding     share of the processes' time in which they looked for a run and claimed it
  storing     the same for writing results
  twice       runs that were executed more than once; must be 0
  open files  most that a process had open at once, beyond those at its start
  status      seconds of `run.py status` for stores of several sizes, as `perf status` builds them

The processes share this machine: with more of them than cores, waiting for a core is in all figures. With
--slurm they are the tasks of jobs on the SLURM that is here; for one: eval "$(slurm/cluster/up --nodes 10)".
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.arguments import positive, seconds
from benchmarks.launch.execution import Execution
from benchmarks.launch.tasks import Options, RunTask
from benchmarks.launch.worker import Worker
from benchmarks.perf import status
from benchmarks.perf.machine import machine
from benchmarks.training.group import Group
from benchmarks.workspace import REPOSITORY, Workspace
from methods.errors import UserError
from slurm import client

SIZES = (500, 1000, 2000, 4000)
"""Runs of the stores that `status` looks at."""
LOOKS = 2
START_SECONDS = 120.0
"""How long processes wait for each other before they begin."""
CLASSES = 80


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this measurement."""
    parser.add_argument("--json", action="store_true", help="print one JSON line, not the table")
    parser.add_argument("--runs", type=positive, default=2000, help="runs to claim (default: 2000)")
    parser.add_argument("--workers", type=positive, default=40, help="processes (default: 40)")
    parser.add_argument(
        "--sleep", type=seconds, default=0.5, metavar="S", help="seconds of a run by itself (default: 0.5)"
    )
    parser.add_argument("--slurm", action="store_true", help="the processes are tasks of SLURM jobs")
    parser.add_argument("--no-status", action="store_true", help="leave the looks at growing stores out")


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    if options.slurm and not client.available():
        raise UserError('no SLURM here; a throwaway one: eval "$(slurm/cluster/up --nodes 10)"')
    found = measure(options.runs, options.workers, options.sleep, slurm=options.slurm)
    if not options.no_status:
        found["status"] = {size: look(size) for size in SIZES}
    print(json.dumps(found) if options.json else table(found))
    return 1 if found["twice"] or found["lost"] else 0


def measure(runs: int, workers: int, sleep: float, *, slurm: bool = False) -> dict[str, Any]:
    """Have processes do the runs of a new store.

    Args:
        runs: how many.
        workers: processes that claim them.
        sleep: seconds that a run takes by itself.
        slurm: whether the processes are tasks of jobs.

    Returns:
        What the JSON line has.

    Raises:
        UserError: a process ended badly.
    """
    load = os.getloadavg()[0]
    # Under the working directory where nodes have to see it.
    with tempfile.TemporaryDirectory(prefix="ssmll-perf-", dir=Path.cwd() if slurm else None) as name:
        folder = Path(name)
        (folder / "out").mkdir()
        (folder / "runs" / "store").mkdir(parents=True)
        _say(f"{workers} processes and {runs} runs in {folder}")
        (_on_cluster if slurm else _here)(folder, runs, workers, sleep)
        files = sorted((folder / "out").glob("*.json"))
        if len(files) != workers:
            raise UserError(f"{workers - len(files)} of {workers} processes left no figures")
        each = [json.loads(file.read_text()) for file in files]
        store = Workspace(folder, folder / "runs").store
        kinds = Counter(store.state(path).kind for path in store.scan())
    executed = Counter(run for one in each for run in one["runs"])
    wall = max(one["ended"] for one in each) - min(one["began"] for one in each)
    busy = sum(one["ended"] - one["began"] for one in each)
    return {
        "runs": runs,
        "workers": workers,
        "sleep": sleep,
        "wall": wall,
        "claims": sum(executed.values()) / wall,
        "most": workers / sleep,
        "finding": sum(one["finding"] for one in each) / busy,
        "storing": sum(one["storing"] for one in each) / busy,
        "looks": sum(one["looks"] for one in each) / runs,
        "milliseconds": 1000 * statistics.median(took for one in each for took in one["claims"]),
        "twice": sum(count > 1 for count in executed.values()),
        "lost": runs - kinds["done"],
        "files": max(one["files"] for one in each),
        "slurm": client.call("sinfo", "--version").strip() if slurm else None,
        "machine": machine(),
        "load": load,
    }


def look(runs: int) -> float:
    """Seconds of `run.py status` for a store of so many runs, without SLURM; the median of some looks."""
    return status.measure(runs, LOOKS)["copy"]


def _here(folder: Path, runs: int, workers: int, sleep: float) -> None:
    # Forked, so that torch is imported once.
    forked = multiprocessing.get_context("fork")
    processes = [
        forked.Process(target=work, args=(folder, number, workers, runs, sleep)) for number in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def _on_cluster(folder: Path, runs: int, workers: int, sleep: float) -> None:
    from slurm.profile import Profile
    from slurm.submit import Array, submit
    from slurm.task import JobCommand

    words = [str(folder), str(workers), str(runs), str(sleep)]
    commands = [
        JobCommand((sys.executable, "-m", "benchmarks.perf.store", str(number), *words))
        for number in range(workers)
    ]
    profile = Profile(gpus=0, cpus=1, minutes=30)
    array = Array(tuple(range(workers)))
    jobs = submit(array, folder / "jobs", "ssmll-perf-store", profile, commands, REPOSITORY, workers)
    try:
        while client.queue(["ssmll-perf-store"]):
            time.sleep(1.0)
    except BaseException:
        client.cancel({job.partition("_")[0] for _, job in jobs})
        raise


def work(folder: Path, number: int, workers: int, runs: int, sleep: float) -> None:
    """One process: waits for the others, walks the list, and leaves its figures in the folder.

    Args:
        folder: of the measurement.
        number: of this process.
        workers: how many there are.
        runs: of the list.
        sleep: seconds of a run.
    """
    out = folder / "out"
    (out / f"{number}.here").touch()
    end = time.monotonic() + START_SECONDS
    while len(list(out.glob("*.here"))) < workers and time.monotonic() < end:
        time.sleep(0.05)
    workspace = Workspace(folder, folder / "runs")
    clock = _Clock(workspace, sleep)
    began = time.time()
    Worker([(None, _job(k)) for k in range(runs)], workspace, clock).work()  # type: ignore[arg-type, misc]
    figures = {
        "began": began,
        "ended": time.time(),
        "finding": clock.finding,
        "storing": clock.storing,
        "claims": clock.claims,
        "looks": clock.looks,
        "files": clock.files,
        "runs": clock.done,
    }
    (out / f"{number}.json").write_text(json.dumps(figures))


class _Clock(Execution):
    """Executes runs that sleep, and times what is around them.

    Attributes:
        finding: seconds between the end of a run, or the start, and the begin of the next.
        storing: seconds of writing results.
        claims: seconds of each successful claim, from the look at the run to its begin.
        looks: how often a run was looked at.
        files: most open files beyond those at the start.
        done: the runs that were executed.
    """

    def __init__(self, workspace: Workspace, sleep: float) -> None:
        strategy: Any = SimpleNamespace(group=Group(), accelerator=SimpleNamespace(device="cpu"))
        super().__init__(workspace, strategy, Options(launch="perf"))
        self.sleep = sleep
        self.finding = self.storing = 0.0
        self.claims: list[float] = []
        self.looks = self.files = 0
        self.files_before = _open_files()  # a forked process has those of its parent
        self.done: list[str] = []
        self.free = time.perf_counter()
        self.looked = 0.0

    def run(self, job: Any, number: int = 0) -> str:
        """As `Execution.run`, with a run that sleeps."""
        self.looks += 1
        self.looked = time.perf_counter()
        return self._claim(_Nap(self._context, job, self), number)


class _Nap(RunTask):
    """A run that sleeps in the place of a training."""

    def __init__(self, context: Any, job: Any, clock: _Clock) -> None:
        super().__init__(context, job)
        self.clock = clock

    def compute(self, lease: Any) -> None:
        """Sleep, and store a result of the usual size."""
        clock, begins = self.clock, time.perf_counter()
        clock.finding += begins - clock.free
        clock.claims.append(begins - clock.looked)
        clock.files = max(clock.files, _open_files() - clock.files_before)
        clock.done.append(self.job.spec.run_id)
        time.sleep(clock.sleep)
        stores = time.perf_counter()
        record, arrays = _result(self.job)
        self.workspace.store.write_result(self.directory, lease, record, arrays)
        clock.free = time.perf_counter()
        clock.storing += clock.free - stores


def _open_files() -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/fd"))
    return 0  # no /proc


def _job(k: int) -> Any:
    """What a worker asks of a job, for the k-th run."""
    values = {
        "dataset": {"alias": ("voc2007", "coco2014")[k % 2]},
        "method": f"method{k % 7}",
        "label": f"method{k % 7}",
        "ratio": 0.05 * (1 + k % 4),
        "seed": k,
        "hyper": {f"value_{n}": n / 7 for n in range(20)},
    }
    run_id = hashlib.sha256(str(k).encode()).hexdigest()
    spec = SimpleNamespace(run_id=run_id, title=f"run {k}", record=lambda: values)
    return SimpleNamespace(
        spec=spec,
        stages=(),
        cell=SimpleNamespace(kind="fit"),
        directory=lambda workspace: workspace.store.directory(run_id, values),
    )


def _result(job: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    import numpy as np

    summary = {
        "mAP": 50.0,
        "num_classes": CLASSES,
        "AP": [50.0] * CLASSES,
        **dict.fromkeys(("OF1", "CF1", "head", "medium", "tail")),
        "groups": ["head"] * CLASSES,
        "train_counts": [1] * CLASSES,
    }
    record = {
        "run_id": job.spec.run_id,
        "spec": job.spec.record(),
        "metrics": {"last": summary, "val": None, "oracle": None},
        "classes": [f"class {k}" for k in range(CLASSES)],
        "cost": {"seconds": 1.0, "device": "CPU"},
        "provenance": {},
        "finished": "2026-01-01T00:00:00Z",
    }
    return record, {"scores": np.zeros((100, CLASSES), np.float32)}


def table(found: dict[str, Any]) -> str:
    """The result as text."""
    lines = [
        f"{found['runs']} runs of {found['sleep']:g} s, {found['workers']} processes: {found['wall']:.1f} s",
        f"claims     {found['claims']:8.1f} a second (without any cost: {found['most']:.1f})",
        f"a claim    {found['milliseconds']:8.1f} ms (median); {found['looks']:.1f} looks for each run",
        f"finding    {100 * found['finding']:8.1f} % of the processes' time",
        f"storing    {100 * found['storing']:8.1f} %",
        f"twice      {found['twice']:8d} runs; lost {found['lost']}",
        f"open files {found['files']:8d} at most in a process",
    ]
    lines += [f"status     {took:8.2f} s for {size} runs" for size, took in found.get("status", {}).items()]
    place = found["machine"]
    where = f"; {found['slurm']}" if found["slurm"] else ""
    return "\n".join(
        [*lines, f"{place['cpu']}, {place['cores']} cores, load {found['load']:.1f} before{where}"]
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":  # a task of a SLURM job
    work(Path(sys.argv[2]), int(sys.argv[1]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
