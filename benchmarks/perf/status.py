"""Status: seconds of `run.py status`, from the start of Python to its end.

A store as a large grid leaves it halfway is built in a temporary folder: half of the runs are
done, 3 % run on other nodes, 0.5 % each have failed (with logs), were preempted and are dead; the
rest was submitted and waits. Each look is a new process. It is timed in two ways:

  queue    a squeue and a sacct that answer at once are on the PATH: SLURM's own time is not counted,
           the time to read its answers is
  copy     SLURM's commands are absent, as on a laptop

The files are in the machine's cache, because they were written just before.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.arguments import positive
from benchmarks.perf.machine import machine
from benchmarks.workspace import REPOSITORY
from methods.errors import UserError
from results.schema import RULES
from results.store import RunStore, error_signature
from slurm.launches import Launch, Launches

CLASSES = 80
SHARES = {"done": 0.5, "running": 0.03, "failed": 0.005, "preempted": 0.005, "dead": 0.005}
"""Shares of the runs; the rest waits."""
WAYS = ("queue", "copy")
BUNDLE = 10
"""Runs of a job."""
ERRORS = (
    ("OutOfMemoryError", "tried to allocate {} MiB (recipe.batch_unlabelled = 60)"),
    ("Diverged", "loss of csaa not finite at epoch {} step 3: labelled=nan"),
    ("OSError", "[Errno 5] Input/output error: '/data/cache/coco-{}/train.npy'"),
)
RUN_PY = REPOSITORY / "benchmarks" / "run.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this measurement."""
    parser.add_argument("--json", action="store_true", help="print one JSON line, not the table")
    parser.add_argument("--runs", type=positive, default=10_000, help="runs (default: 10000)")
    parser.add_argument(
        "--rounds", type=positive, default=5, help="rounds, after one that warms up (default: 5)"
    )


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    found = measure(options.runs, options.rounds)
    print(json.dumps(found) if options.json else table(found))
    return 0


def measure(runs: int, rounds: int) -> dict[str, Any]:
    """Build a store and look at it.

    Args:
        runs: runs of the store.
        rounds: looks of each way that count.

    Returns:
        What the JSON line has; seconds are medians over the rounds.

    Raises:
        UserError: a look did not find what was built.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with tempfile.TemporaryDirectory(prefix="ssmll-perf-") as name:
        folder = Path(name)
        _say(f"building a store of {runs} runs in {folder}")
        counts = build(folder / "runs", folder / "bin", runs)
        (folder / "empty").mkdir()
        paths = {"queue": folder / "bin", "copy": folder / "empty"}
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(rounds + 1):
            for way in WAYS:
                took, first = _look(folder / "runs", paths[way])
                if f"{counts['done']} done, {counts['running']} running" not in first:
                    raise UserError(f"status found something else than what was built: {first}")
                if number:  # the first look compiles modules
                    seconds[way].append(took)
    return {
        **{way: statistics.median(each) for way, each in seconds.items()},
        "all": seconds,
        "runs": runs,
        "rounds": rounds,
        "counts": counts,
        "machine": machine(),
        "load": load,
        "python": ".".join(map(str, sys.version_info[:3])),
    }


def table(found: dict[str, Any]) -> str:
    """The result as text."""
    counts = ", ".join(f"{count} {kind}" for kind, count in found["counts"].items())
    notes = {"queue": "with the answers of squeue and sacct", "copy": "without SLURM"}
    lines = [f"status of {found['runs']} runs ({counts}); medians of {found['rounds']} processes"]
    for way in WAYS:
        span = f"{min(found['all'][way]):.2f} to {max(found['all'][way]):.2f}"
        lines.append(f"{way:6} {found[way]:6.2f} s  ({span})  {notes[way]}")
    busy = "" if found["load"] is None else f", load {found['load']:.1f} before"
    place = found["machine"]
    lines.append(f"{place['cpu']}, {place['cores']} cores{busy}; python {found['python']}")
    return "\n".join(lines)


def build(runs: Path, commands: Path, count: int) -> dict[str, int]:
    """Write a store, a launch, and commands that answer for SLURM.

    Args:
        runs: the folder of runs to make.
        commands: folder of the commands to make: sbatch, squeue, sacct.
        count: runs.

    Returns:
        Runs of each kind, as `status` should count them with the commands on the PATH.
    """
    kinds = [kind for kind, share in SHARES.items() for _ in range(round(share * count))]
    kinds += ["queued"] * (count - len(kinds))
    ids = [hashlib.sha256(str(k).encode()).hexdigest() for k in range(count)]
    specs: list[dict[str, Any]] = [
        {
            "dataset": {"alias": ("voc2007", "coco2014")[k % 2], "digest": "d" * 64},
            "method": f"method{k % 7}",
            "label": f"method{k % 7}",
            "ratio": 0.05 * (1 + k % 4),
            "seed": k,
            "hyper": {f"value_{n}": n / 7 for n in range(20)},
        }
        for k in range(count)
    ]
    titles = {
        run_id: f"{spec['method']} · {spec['dataset']['alias']} p={spec['ratio']:g} "
        f"seed={spec['seed']} [{run_id[:8]}]"
        for run_id, spec in zip(ids, specs, strict=True)
    }
    bundles = [{"run_ids": ids[k : k + BUNDLE]} for k in range(0, count, BUNDLE)]
    plan = {"job_name": "ssmll-perf", "bundles": bundles, "titles": titles}
    launch = Launches(runs).create("perf", plan)
    launch.record({k: f"1000_{k}" for k in range(len(bundles))})
    launch.log_folder.mkdir()
    store = RunStore(runs / "store")
    for k, kind in enumerate(kinds):
        if kind != "queued":
            directory = store.directory(ids[k], specs[k])
            directory.mkdir(parents=True)
            _write(directory, kind, k, specs[k], launch)
    waiting = {k // BUNDLE for k, kind in enumerate(kinds) if kind in ("preempted", "queued")}
    _commands(commands, waiting, len(bundles))
    dead = [k for k, kind in enumerate(kinds) if kind == "dead" and k // BUNDLE in waiting]
    counts = {kind: kinds.count(kind) for kind in (*SHARES, "queued")}
    # A dead run whose job waits for another of its runs is one that was preempted.
    counts["preempted"] += len(dead)
    counts["dead"] -= len(dead)
    return {kind: number for kind, number in counts.items() if number}


def _write(directory: Path, kind: str, k: int, spec: dict[str, Any], launch: Launch) -> None:
    """A run's files, as the store and the trainer leave them."""
    lease = {
        "generation": 1,
        "token": "0" * 16,
        "ttl": 10.0**6 if kind == "running" else 60.0,
        "released": kind != "running",
        "host": f"node{k % 50:03d}",
        "boot": "another",
        "namespace": "pid:[1]",
        "pid": 1000 + k,
        "start": 1,
    }
    _json(directory / "lease.000001", lease)
    _json(directory / "spec.json", spec)
    rows = [
        {"format": 2, "epoch": epoch, "mAP_ema": 50.0, "losses": {"labelled": 1.0}} for epoch in range(1, 6)
    ]
    (directory / "epochs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = str(launch.log(f"1000_{k // BUNDLE}"))
    if kind == "done":
        run_id, ap = directory.name.rsplit("-", 1)[-1], [50.123456789012345] * CLASSES
        metrics = {rule: {"AP": ap, "train_counts": [700] * CLASSES} for rule in RULES}
        result = {"run_id": run_id, "spec": spec, "classes": ["class"] * CLASSES, "metrics": metrics}
        _json(directory / "result.json", result)
        (directory / "predictions.npz").write_bytes(b"0" * 1000)
    elif kind == "failed":
        error, message = ERRORS[k % len(ERRORS)]
        message = message.format(k)
        frames = "".join(
            f'  File "/code/methods/part{n}.py", line {n}, in call\n    go()\n' for n in range(20)
        )
        _json(
            directory / "failure.json",
            {
                "type": error,
                "message": message,
                "signature": error_signature(error, message),
                "traceback": f"Traceback (most recent call last):\n{frames}{error}: {message}\n",
                "generation": 1,
                "log": log,
            },
        )
        Path(log).write_text("".join(f"line {n} of a log\n" for n in range(2000)))
    else:
        _json(
            directory / "progress.json",
            {
                "format": 2,
                "title": "",
                "epoch": 3,
                "epochs": 40,
                "step": 17,
                "steps": 200,
                "seconds": 1000.0,
                "left": 9000.0,
                "time": time.time(),
                "host": lease["host"],
                "pid": lease["pid"],
                "job": f"1000_{k // BUNDLE}",
                "log": log,
            },
        )


def _commands(folder: Path, waiting: set[int], jobs: int) -> None:
    folder.mkdir()
    queue = "".join(f"1000_{k}|PENDING|Priority|0:00|\n" for k in sorted(waiting))
    ended = "".join(f"1000_{k}|NODE_FAIL\n" for k in range(jobs) if k not in waiting)
    for name, answer in (("sbatch", ""), ("squeue", queue), ("sacct", ended)):
        (folder / f"{name}.txt").write_text(answer)
        script = folder / name
        script.write_text(f"#!/bin/sh\nexec /bin/cat '{folder / name}.txt'\n")
        script.chmod(0o755)


def _look(runs: Path, path: Path) -> tuple[float, str]:
    """Seconds of one status in a new process, and its first line."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(RUN_PY), "status", "--runs", str(runs)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": str(path)},
    )
    took = time.perf_counter() - began
    if done.returncode not in (0, 1):
        raise UserError(f"status ended with {done.returncode}: {done.stderr.strip()}")
    return took, done.stdout.partition("\n")[0]


def _json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
