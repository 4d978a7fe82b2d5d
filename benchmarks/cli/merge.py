"""The verb `merge`: the finished runs of other folders of runs, taken into this one. Imports no torch."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from benchmarks.arguments import folder
from benchmarks.cli import options
from benchmarks.workspace import Workspace
from results import merge as merging
from results.merge import Met
from results.store import RunStore
from results.text import one_line

LISTED = 20
"""Runs of a kind that are named without --all."""


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    parser = options.verb(
        verbs,
        "merge",
        merge,
        help="take the finished runs of other folders of runs into this one",
        examples=[
            "merge ../laptop/runs --dry-run",
            "merge /scratch/a/runs /scratch/b/runs --stages --runs runs",
        ],
        parents=[options.folders()],
    )
    parser.add_argument(
        "stores", type=folder, nargs="+", metavar="STORE", help="a folder of runs, as for --runs"
    )
    parser.add_argument(
        "--stages", action="store_true", help="the finished shared stages (features, warm-ups) too"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be taken; nothing is written")
    parser.add_argument("--all", action="store_true", help="name every run, not the first 20 of a kind")


def merge(args: argparse.Namespace) -> int:
    """Take over what is finished elsewhere; conflicts and what else is left are named.

    Returns:
        1 if a finished run of a store is not here afterwards, or differs from the one here; else 0.

    Raises:
        StoreError: a store is missing, or the same as this one.
    """
    workspace = options.workspace(args)
    for place in args.stores:  # all of them, before anything is written
        merging.check(workspace.store.root, _store(place).root)
    complete = True
    for place in args.stores:
        parts = [("runs", workspace.store, _store(place), merging.merge)]
        if args.stages:
            stages = RunStore(workspace.stages), RunStore(Workspace(args.data, place).stages)
            parts.append(("stages", *stages, merging.merge_stages))
        for what, target, source, work in parts:
            lines = _Lines(LISTED if not args.all else sys.maxsize)
            found = work(target, source, dry_run=args.dry_run, say=lines)
            lines.close()
            would = "would be: " if args.dry_run else ""
            print(one_line(f"{what} of {place}: {would}{merging.summary(found)}"))
            complete = complete and found.complete
    return 0 if complete else 1


def _store(runs: Path) -> RunStore:
    return Workspace(Path(), runs).store


class _Lines:
    """Prints a line on each run that is not simply taken or equal, the first few of a kind."""

    def __init__(self, most: int) -> None:
        self.most, self.counts = most, Counter[str]()

    def __call__(self, met: Met) -> None:
        if met.kind in ("taken", "equal") and not met.detail:
            return
        self.counts[met.kind] += 1
        if self.counts[met.kind] <= self.most:
            out = sys.stderr if met.kind in merging.LEFT else sys.stdout
            print(one_line(f"{met.kind}: {met.path}: {met.detail}"), file=out, flush=True)

    def close(self) -> None:
        """Say how many were not named."""
        for kind, count in self.counts.items():
            if count > self.most:
                print(f"{kind}: ... and {count - self.most} more (--all)")
