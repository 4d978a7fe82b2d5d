"""Submission: seconds from a grid's name to its jobs in the queue, on the SLURM that is here.

A grid of many tiny runs (linear probes on 300 rendered scenes) is planned and submitted, its jobs
held so that none starts, and cancelled again. The parts:

  resolve   read the grid file, draw splits, give every run its identity
  propose   read the store and the queue; estimates, bundles, the table
  submit    copy the code, submit the jobs and record them

Then some of the runs are executed, by two jobs at a time and by two workers without SLURM, from the
start of Python to the table; the difference is the overhead of a cluster per run. The time of a run by
itself is the mean of the stored times.

Data and features exist before; Python's start and imports are not counted, but reported. Without a
cluster: eval "$(slurm/cluster/up)".
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.perf.machine import machine
from benchmarks.workspace import REPOSITORY
from methods.errors import UserError
from slurm import client
from slurm.profile import Profile

RUN = REPOSITORY / "benchmarks" / "run.py"
GRID = """
description = "many tiny runs"
datasets = [{{ name = "coco", alias = "scenes", root = {root} }}]
ratios = [0.3]
seeds = {seeds}
methods = ["linear_probe"]
recipe = "embedded"
[override]
resolution = 64
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this measurement."""
    parser.add_argument("--json", action="store_true", help="print one JSON line, not the table")
    parser.add_argument("--runs", type=int, default=1000, help="runs (default: 1000)")
    parser.add_argument(
        "--execute",
        type=int,
        default=200,
        metavar="N",
        help="runs that are executed; 0 for none (default: 200)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: 5)")


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    client.require()
    found = measure(options.runs, options.rounds)
    if options.execute:
        found["execution"] = execute(options.execute)
    print(json.dumps(found) if options.json else table(found))
    return 0


def measure(runs: int, rounds: int) -> dict[str, Any]:
    """Plan and submit a grid a few times, in a store of its own each time.

    Args:
        runs: runs of the grid.
        rounds: repetitions that count; one more comes before.

    Returns:
        What the JSON line has; seconds are medians.
    """
    started = time.perf_counter()
    from benchmarks.data.glyphscenes import scenes as glyphscenes
    from benchmarks.launch.cost_table import cost_table
    from benchmarks.launch.slurm import SlurmOptions, propose
    from benchmarks.launch.slurm_submission import launch
    from benchmarks.plan.grid import load
    from benchmarks.plan.jobs import resolve
    from benchmarks.progress import silent
    from benchmarks.workspace import Workspace

    imports = time.perf_counter() - started
    profile = Profile(gpus=0, cpus=1, minutes=60, bundle_minutes=200, extra={"hold": True})
    parts: dict[str, list[float]] = {"resolve": [], "propose": [], "submit": []}
    jobs = 0
    with tempfile.TemporaryDirectory(prefix="ssmll-perf-") as folder:
        root = Path(folder)
        scenes = glyphscenes.write(root, sizes={"train": 240, "test": 60}, workers=1)
        path = root / "many.toml"
        path.write_text(GRID.format(root=json.dumps(str(scenes)), seeds=list(range(runs))))
        for number in range(rounds + 1):
            workspace = Workspace(root / "data", root / f"runs-{number}")
            times = [time.perf_counter()]
            grid = load(str(path))
            resolved = resolve(grid, workspace, progress=silent, workers=1)
            times.append(time.perf_counter())
            proposal = propose(SlurmOptions(profile), resolved, workspace)
            text = cost_table(proposal)
            times.append(time.perf_counter())
            with contextlib.redirect_stderr(io.StringIO()):
                made = launch(grid, proposal, workspace, lambda line: None)
            times.append(time.perf_counter())
            assert made is not None
            assert str(runs) in text
            client.cancel(job.partition("_")[0] for job in made.jobs().values())
            jobs = len(made.jobs())
            if number:
                for name, first, last in zip(parts, times, times[1:], strict=False):
                    parts[name].append(last - first)
    middle = {name: statistics.median(values) for name, values in parts.items()}
    totals = [sum(values) for values in zip(*parts.values(), strict=True)]
    return {
        "seconds": statistics.median(totals),
        "rounds_seconds": totals,
        "parts": middle,
        "imports": imports,
        "runs": runs,
        "jobs": jobs,
        "rounds": rounds,
        "slurm": client.call("sinfo", "--version").strip(),
        "machine": dict(machine()),
    }


def execute(runs: int) -> dict[str, Any]:
    """Execute tiny runs on the cluster, two jobs at a time, and with two local workers.

    Args:
        runs: how many.

    Returns:
        Seconds of each way, seconds of a run by itself, and seconds that the cluster adds to one.

    Raises:
        UserError: runs failed.
    """
    from benchmarks.data.glyphscenes import scenes as glyphscenes

    each = {}
    own: list[float] = []
    with tempfile.TemporaryDirectory(prefix="ssmll-perf-") as folder:
        root = Path(folder)
        scenes = glyphscenes.write(root, sizes={"train": 240, "test": 60}, workers=1)
        grid, profile = root / "some.toml", root / "profile.toml"
        grid.write_text(GRID.format(root=json.dumps(str(scenes)), seeds=list(range(runs))))
        # Unknown runs are taken for ten minutes: four jobs.
        profile.write_text(f"gpus = 0\ncpus = 1\nparallel = 2\nbundle_minutes = {runs * 10 // 4}\n")
        ways = {
            "warm": ["--workers", "2"],
            "local": ["--workers", "2"],
            "slurm": ["--launcher", "slurm", "--profile", str(profile), "--yes", "--wait"],
        }
        for way, words in ways.items():
            store = root / f"runs-{way}"
            started = time.perf_counter()
            done = subprocess.run(
                [
                    sys.executable,
                    str(RUN),
                    "--grid",
                    str(grid),
                    "--data",
                    str(root / "data"),
                    "--runs",
                    str(store),
                    "--no-plots",
                    *words,
                ],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            each[way] = time.perf_counter() - started
            if done.returncode:
                raise UserError(done.stderr.strip().splitlines()[-1])
            paths = (store / "store").glob("*/*/*/result.json")
            own = [json.loads(path.read_text())["cost"]["seconds"] for path in paths]
            assert len(own) == runs
    return {
        "runs": runs,
        "slurm_seconds": each["slurm"],
        "local_seconds": each["local"],
        "own_seconds": statistics.mean(own),
        "added_seconds": (each["slurm"] - each["local"]) / runs,
    }


def table(found: dict[str, Any]) -> str:
    """The result as text."""
    place = found["machine"]
    lines = [
        f"{found['runs']} runs in {found['jobs']} jobs: {found['seconds']:.2f} s "
        f"({min(found['rounds_seconds']):.2f}-{max(found['rounds_seconds']):.2f}, medians of "
        f"{found['rounds']} rounds)",
        *(f"  {name:8} {seconds:.2f} s" for name, seconds in found["parts"].items()),
        *_executed(found.get("execution")),
        f"imports of Python before: {found['imports']:.1f} s",
        f"{place['cpu']}, {place['cores']} cores; {found['slurm']}",
    ]
    return "\n".join(lines)


def _executed(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    return [
        f"{found['runs']} runs of {1000 * found['own_seconds']:.0f} ms each, two at a time: "
        f"{found['slurm_seconds']:.1f} s on the cluster, {found['local_seconds']:.1f} s without: "
        f"{1000 * found['added_seconds']:.0f} ms more a run"
    ]
