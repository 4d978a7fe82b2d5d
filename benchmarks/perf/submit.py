"""Submission: seconds from a grid's name to its jobs in the queue, on the SLURM that is here.

A grid of many tiny runs (linear probes on 300 rendered scenes) is planned and submitted, its jobs
held so that none starts, and cancelled again. The parts:

  resolve   the grid file is read, splits are drawn, every run gets its identity
  propose   the store and the queue are asked what is missing; estimates, bundles, the table
  submit    the code is copied, jobs are submitted and recorded

Data and features are there before; Python's start and imports are not counted, but told. Without a
cluster: eval "$(slurm/cluster/up)".
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.perf.machine import machine
from slurm import client
from slurm.profile import Profile

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
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: 5)")


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    client.require()
    found = measure(options.runs, options.rounds)
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
    from benchmarks.cluster import Cluster, launch, propose
    from benchmarks.data import glyphscenes
    from benchmarks.grid import load
    from benchmarks.plan import resolve
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
            proposal = propose(Cluster(profile), resolved, workspace)
            text = proposal.table()
            times.append(time.perf_counter())
            with contextlib.redirect_stderr(io.StringIO()):
                made = launch(grid, proposal, workspace, lambda line: None)
            times.append(time.perf_counter())
            assert made is not None
            assert str(runs) in text
            client.call("scancel", *{job.partition("_")[0] for job in made.jobs().values()})
            jobs = len(made.jobs())
            if number:
                for name, first, last in zip(parts, times, times[1:], strict=False):
                    parts[name].append(last - first)
    middle = {name: statistics.median(values) for name, values in parts.items()}
    totals = [sum(values) for values in zip(*parts.values(), strict=True)]
    return {
        "seconds": statistics.median(totals), "rounds_seconds": totals, "parts": middle,
        "imports": imports, "runs": runs, "jobs": jobs, "rounds": rounds,
        "slurm": client.call("sinfo", "--version").strip(), "machine": dict(machine()),
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """For a terminal."""
    place = found["machine"]
    lines = [
        f"{found['runs']} runs in {found['jobs']} jobs: {found['seconds']:.2f} s "
        f"({min(found['rounds_seconds']):.2f}-{max(found['rounds_seconds']):.2f}, medians of "
        f"{found['rounds']} rounds)",
        *(f"  {name:8} {seconds:.2f} s" for name, seconds in found["parts"].items()),
        f"imports of Python before: {found['imports']:.1f} s",
        f"{place['cpu']}, {place['cores']} cores; {found['slurm']}",
    ]
    return "\n".join(lines)
