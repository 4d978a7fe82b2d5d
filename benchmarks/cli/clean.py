"""The verb `clean`: what takes room, and deleting what is asked. Imports no torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.arguments import one_line
from benchmarks.cli import options
from benchmarks.status import room
from methods.errors import UserError, nearest
from results import text
from results.weights import size_text


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    parser = options.verb(
        verbs,
        "clean",
        clean,
        help="show what takes room beside results, and delete what is asked",
        examples=["clean", "clean --delete checkpoints stages --runs runs"],
        parents=[options.folders()],
    )
    parser.add_argument(
        "--delete",
        nargs="+",
        default=[],
        type=one_line,
        metavar="NAME",
        help=f"kinds ({', '.join(room.KINDS)}) or names as --all lists them; results are never deleted",
    )
    parser.add_argument("--all", action="store_true", help="name everything, not the sums alone")


def clean(args: argparse.Namespace) -> int:
    """Print what takes room by kind; delete what was asked for.

    Returns:
        1 if something that was asked for is held or cannot be deleted, else 0.

    Raises:
        UserError: a name that is neither a kind nor listed; nothing is deleted.
    """
    workspace = options.workspace(args)
    remarks: list[str] = []
    items = room.items(workspace, remarks)
    for line in remarks:
        print(text.one_line(f"left out: {line}"), file=sys.stderr)
    if not args.delete:
        _show(items, workspace.data, workspace.runs, everything=args.all)
        return 0
    names = {item.name for item in items}
    for name in args.delete:
        if name not in room.KINDS and name not in names:
            words = [*room.KINDS, *names]
            raise UserError(f"--delete: nothing here is called {name!r}{nearest(name, words)}; see --all")
    wanted = [item for item in items if item.kind in args.delete or item.name in args.delete]
    freed = 0
    left = []
    for item in wanted:
        why = item.held or room.delete(item)
        if why:
            left.append(text.one_line(f"kept: {item.name}: {why}"))
        else:
            freed += item.size
    print(f"deleted: {len(wanted) - len(left)} of {len(wanted)}, {size_text(freed)}")
    for line in left:
        print(line, file=sys.stderr)
    return 1 if left else 0


def _show(items: list[room.Item], data: Path, runs: Path, *, everything: bool) -> None:
    from tabulate import tabulate

    rows = []
    for kind, what in room.KINDS.items():
        own = [item for item in items if item.kind == kind]
        held = sum(bool(item.held) for item in own)
        number = f"{len(own)} ({held} held)" if held else str(len(own))
        rows.append([kind, number, size_text(sum(item.size for item in own)) if own else "-", what])
        for item in own if everything else ():
            reason = f"held: {item.held}" if item.held else ""
            rows.append([f"  {text.terminal(item.name)}", "", size_text(item.size), reason])
    print(f"data {data}, runs {runs}")
    print(tabulate(rows, ["kind", "number", "room", ""], disable_numparse=True, preserve_whitespace=True))
    print("\nclean --delete KIND, or a name of --all, deletes; results, predictions and rows of epochs stay")
