"""Runs a small grid with one process and with several, and compares what comes of it.

    python -m benchmarks.checks.invariance --methods csaa --seeds 8

It does so twice. In float64 rounding is too small to change a stored score, so a difference is a
fault of the method or of the harness (exit code 1). In float32 a difference need not be a fault:
gradients first differ by about 1e-6 of their size, but once that decides on which side of its kink
an activation lies (ReLU), a part of the gradient appears or vanishes, and Adam makes full steps for
entries that were zero. Two trajectories in float32 are then two samples of the same training, as with
another number of threads or another processor. The table says how far they are apart:

    scores   largest difference of two test scores, in standard deviations of the scores: in the
             median run, and in the worst
    parted   runs in which some scores differ by more than a thousandth of that
    pseudo   runs whose pseudo-labels had another quality in some epoch
    mAP      largest difference of the mAP, in points
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

import methods
from benchmarks.arguments import positive
from benchmarks.checks.small_grid import command, write_grid, write_scenes
from benchmarks.plan.user_code import import_methods
from methods.base import StepMethod
from methods.errors import UserError, nearest
from results.errors import StoreError
from results.store import RunStore

SAME = 1e-6
"""What two scores of float64 may differ by: scores are stored as float32, which rounds by 6e-8."""

PARTED = 1e-3


class Pair(NamedTuple):
    """How two executions of one run differ; see the module."""

    scores: float
    pseudo: bool
    mAP: float  # noqa: N815 - the field's name of it


def compare(one: Path, two: Path) -> dict[str, list[Pair]]:
    """Pairs of the runs of two stores, by method.

    Raises:
        StoreError: a run has no result, or is in one of the stores only.
    """
    first, second = RunStore(one), RunStore(two)
    found: dict[str, list[Pair]] = {}
    for place in first.scan():
        other = two / place.relative_to(one)
        results = [first.load(place), second.load(other)]
        scores = [s.predictions(d)["scores"] for s, d in ((first, place), (second, other))]
        apart = np.abs(scores[0] - scores[1]).max() / (scores[0].std() or 1.0)
        rows = [first.epochs(place), second.epochs(other)]
        quality = [[row["pseudo_labels"] for row in part] for part in rows]
        points = [result["metrics"]["last"]["mAP"] for result in results]
        pair = Pair(float(apart), quality[0] != quality[1], abs(points[0] - points[1]))
        found.setdefault(results[0]["spec"]["method"], []).append(pair)
    return found


def examine(
    folder: Path, names: Sequence[str], seeds: int, processes: int, modules: Sequence[str] = ()
) -> list[dict]:
    """Run and compare; a row for every precision and method.

    Raises:
        UserError: a run failed.
        StoreError: a run of one store is not in the other; the code was edited meanwhile.
    """
    scenes = write_scenes(folder)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    rows = []
    for precision in ("fp64", "fp32"):
        grid = write_grid(folder / f"{precision}.toml", scenes, seeds, names, precision, modules)
        stores = []
        for count in (1, processes):
            runs = folder / f"{precision}-{count}"
            argv = command(grid, folder / "data", runs, count)
            done = subprocess.run(argv, stdout=subprocess.DEVNULL, env=environment, check=False)
            if done.returncode:
                raise UserError(
                    f"{precision} with --processes {count}: the grid ended with exit code "
                    f"{done.returncode}; the lines above say why"
                )
            stores.append(runs / "store")
        for name, pairs in sorted(compare(*stores).items()):
            scores = [pair.scores for pair in pairs]
            rows.append(
                {
                    "method": name,
                    "precision": precision,
                    "runs": len(pairs),
                    "median": statistics.median(scores),
                    "worst": max(scores),
                    "parted": sum(value > PARTED for value in scores),
                    "pseudo": sum(pair.pseudo for pair in pairs),
                    "mAP": max(pair.mAP for pair in pairs),
                }
            )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m benchmarks.checks.invariance`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checks.invariance", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="trained methods (default: all)")
    parser.add_argument(
        "--modules",
        nargs="+",
        default=[],
        metavar="FILE",
        help="files with methods of your own, as in a grid",
    )
    parser.add_argument(
        "--seeds", type=positive, default=4, metavar="N", help="runs of each method (default 4)"
    )
    parser.add_argument(
        "--processes", type=positive, default=2, metavar="N", help="compared with one (default 2)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    args = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        for module in args.modules:
            import_methods(module, Path.cwd(), "--modules")
        trained = [n for n in methods.available() if issubclass(methods.get(n), StepMethod)]
        names = args.methods or trained
        for name in names:
            if name not in trained:
                raise UserError(f"--methods: no trained method {name!r}{nearest(name, trained)}")
        if args.processes == 1:
            raise UserError("--processes: 1 process would be compared with itself; take 2 or more")
        with tempfile.TemporaryDirectory(prefix="ssmll-invariance-") as folder:
            places = [str(Path(m).resolve()) if m.endswith(".py") else m for m in args.modules]
            rows = examine(Path(folder), names, args.seeds, args.processes, places)
    except (UserError, StoreError) as error:
        print(error, file=sys.stderr)
        return 2
    broken = [r for r in rows if r["precision"] == "fp64" and (r["worst"] > SAME or r["pseudo"])]
    for row in broken:
        print(
            f"{row['method']} depends on the number of processes: in float64 scores differ by "
            f"{row['worst']:.1g} of their standard deviation, pseudo-labels in {row['pseudo']} of "
            f"{row['runs']} runs",
            file=sys.stderr,
        )
    if args.json:
        report = {
            "processes": args.processes,
            "rows": rows,
            "broken": len(broken),
            "seconds": round(time.monotonic() - started),
        }
        print(json.dumps(report))
    else:
        table = [
            [
                *list(row.values())[:3],
                f"{row['median']:.1g}",
                f"{row['worst']:.1g}",
                row["parted"],
                row["pseudo"],
                f"{row['mAP']:.2f}",
            ]
            for row in rows
        ]
        head = ["method", "precision", "runs", "scores, median", "worst", "parted", "pseudo", "mAP"]
        print(tabulate(table, head, disable_numparse=True, tablefmt="github"))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
