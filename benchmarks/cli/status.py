"""The verbs `status` and `logs`: where runs stand, and what they printed.

Neither imports torch unless a grid has to be resolved.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable

from benchmarks.arguments import positive, seconds
from benchmarks.cli import options
from benchmarks.status.overview import Overview, QueueCache, overview
from methods.errors import UserError


def add(verbs: options.Verbs) -> None:
    """Add the verbs."""
    status_parser = options.verb(
        verbs,
        "status",
        status,
        help="show where runs stand: those of a grid, or all that were begun or submitted",
        examples=["status --grid demo", "status --live --every 2"],
        parents=[options.folders(), options.grid(required=False)],
    )
    option = status_parser.add_argument
    how = status_parser.add_mutually_exclusive_group()
    how.add_argument("--live", action="store_true", help="redraw until every run has ended")
    how.add_argument("--plain", action="store_true", help="print once, as text (the default)")
    how.add_argument("--json", action="store_true", help="print one JSON object")
    option(
        "--every",
        type=seconds,
        default=5.0,
        metavar="S",
        help="seconds between two looks of --live (default 5)",
    )
    option("--all", action="store_true", help="name every run, not the first 20 of a kind")

    logs_parser = options.verb(
        verbs,
        "logs",
        logs,
        help="show what a run printed",
        examples=["logs csaa/glyphscenes/0.05/1", "logs 3f2a --lines 200 --follow"],
        parents=[options.folders()],
    )
    option = logs_parser.add_argument
    option("run", help="start of a run's identity, method/dataset/ratio/seed, or a part of its title")
    option("--lines", type=positive, default=40, metavar="N", help="the last N lines (default 40)")
    option("--follow", action="store_true", help="print what is added until it ends")


def status(args: argparse.Namespace) -> int:
    """Print where runs stand.

    Returns:
        1 if a run has failed or cannot be read, else 0.

    Raises:
        UserError: a filter without a grid, or a grid whose runs are not known.
    """
    from benchmarks.status.view import as_json, live, plain

    look = _looker(args)
    if args.live:
        view = live(look, args.every, everything=args.all)
        return 0 if view is None else _code(view)
    view = look()
    _show(json.dumps(as_json(view)) if args.json else plain(view, everything=args.all))
    return _code(view)


def logs(args: argparse.Namespace) -> int:
    """Print the end of a run's log.

    Raises:
        UserError: no run is meant, or several.
    """
    from benchmarks.status.logs import follow, resolve, show

    view = overview(args.runs, cluster=QueueCache())
    run = resolve(view, args.run)
    lines, path = show(run, args.runs, args.lines)
    _show("\n".join(lines))
    if not args.follow:
        return 0
    if path is None:
        raise UserError(f"{run.title}: there is no log to follow")
    store, directory = options.workspace(args).store, run.directory

    def over() -> bool:
        return directory is not None and store.state(directory).kind in ("done", "failed", "unreadable")

    try:
        follow(path, over)
    except KeyboardInterrupt:
        print(file=sys.stderr)
    return 0


def _looker(args: argparse.Namespace) -> Callable[[], Overview]:
    """What takes one look at the runs that the command line means."""
    cluster = QueueCache()
    if args.grid is None:
        options.without_grid(args)
        return lambda: overview(args.runs, cluster=cluster)
    from benchmarks.cli.planning import known

    remarks: list[str] = []
    plan, workspace = known(args, remarks.append), options.workspace(args)
    wanted = [(run.run_id, run.title, run.directory(workspace)) for run in plan.runs]
    stages = [workspace.runs / path for path in plan.stages]
    old = plan.superseded(workspace)

    def look() -> Overview:
        view = overview(args.runs, wanted, name=f"grid {plan.name}", stages=stages, cluster=cluster, old=old)
        view.remarks[:0] = remarks
        return view

    return look


def _show(text: str) -> None:
    """Print a text whose reader, such as `head`, may have seen enough before its end."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the end


def _code(view: Overview) -> int:
    return 1 if view.hidden or view.of("failed", "unreadable") else 0
