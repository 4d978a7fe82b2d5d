"""The verbs `status` and `logs`: where runs stand, and what they printed.

Neither imports torch unless a grid has to be resolved.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.arguments import positive, seconds
from benchmarks.cli import options
from benchmarks.status.overview import Overview, QueueCache, overview
from methods.errors import UserError

if TYPE_CHECKING:
    from benchmarks.plan.summary import PlanSummary
    from benchmarks.workspace import Workspace


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

        def everything() -> Overview:
            view = overview(args.runs, cluster=cluster)
            view.remarks += _edited_since(view)
            return view

        return everything
    from benchmarks.cli.planning import known

    remarks: list[str] = []
    plan, workspace = known(args, remarks.append), options.workspace(args)
    wanted = [(run.run_id, run.title, run.directory(workspace)) for run in plan.runs]
    stages = [workspace.runs / path for path in plan.stages]
    old = plan.superseded(workspace)
    remarks += _made_by_others(plan, workspace)

    def look() -> Overview:
        view = overview(args.runs, wanted, name=f"grid {plan.name}", stages=stages, cluster=cluster, old=old)
        view.remarks[:0] = remarks
        view.remarks += _edited_since(view)
        return view

    return look


def _made_by_others(plan: PlanSummary, workspace: Workspace) -> list[str]:
    """A line on the results of a grid that other code made than that of today; none where there are none."""
    from benchmarks.plan.product_code import differing
    from results.versions import listed

    counts: dict[tuple[str, ...], int] = {}
    names: dict[str, tuple[str, ...]] = {}  # by hash: most results were made by the same code
    for run in plan.runs:
        try:
            record = json.loads((run.directory(workspace) / "result.json").read_bytes())
            sources = record["provenance"]["sources"]
            if sources["sha256"] not in names:
                names[sources["sha256"]] = tuple(differing(sources["files"]))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue  # not done; from before it was recorded; or damaged, which its state says
        found = names[sources["sha256"]]
        if found:
            counts[found] = counts.get(found, 0) + 1
    return [
        f"{count} runs were made by other code than that of today: it differs in {listed(found)}"
        for found, count in counts.items()
    ]


def _edited_since(view: Overview) -> list[str]:
    """Lines on launches in the queue whose grid, recipe or modules were edited since."""
    from benchmarks.plan.copies import Copies
    from results.versions import listed

    found = []
    waiting = view.of("queued", "preempted", "submitted")
    for launch in {run.launch.folder: run.launch for run in waiting if run.launch is not None}.values():
        try:
            copies = Copies.beside(Path(str(launch.plan.get("grid"))))
        except UserError as error:
            found.append(f"launch {launch.folder.name}: {error}")
            continue
        edited = copies.edited() if copies is not None else []
        if edited:
            found.append(
                f"launch {launch.folder.name} runs its own copies: {listed(edited)} "
                f"{'were' if len(edited) > 1 else 'was'} edited since"
            )
    return found


def _show(text: str) -> None:
    """Print a text whose reader, such as `head`, may have seen enough before its end."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the end


def _code(view: Overview) -> int:
    return 1 if view.hidden or view.of("failed", "unreadable") else 0
