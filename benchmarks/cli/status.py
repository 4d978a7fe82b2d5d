"""The verbs `status` and `logs`: where runs stand, and what they printed.

Neither imports torch unless a grid has to be resolved.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.status.overview import Overview, QueueCache, Wanted, overview
from benchmarks.workspace import Workspace
from methods.errors import UserError

FILTERS = ("ratios", "seeds", "methods", "strategy")


@dataclass(frozen=True)
class Resolved:
    """A grid's runs and where they lie.

    Attributes:
        name: the grid's.
        runs: run id, title, directory.
        stages: directories of the shared stages.
    """

    name: str
    runs: Wanted
    stages: Iterable[Path] = field(default_factory=list)


def add(verbs: argparse._SubParsersAction, parents: dict[str, argparse.ArgumentParser]) -> None:
    """Register the verbs.

    Args:
        verbs: the command line's verbs.
        parents: shared options; "place" has --data, --runs and --workers.
    """
    status = verbs.add_parser(
        "status",
        parents=[parents["place"]],
        help="where runs stand: those of a grid, or all that were begun or submitted",
    )
    option = status.add_argument
    option("--grid", default=None, help="only the runs of a grid (a name, or a .toml file)")
    option("--ratios", type=float, nargs="+", default=[], help="only these ratios of the grid")
    option("--seeds", type=int, nargs="+", default=[], help="only these seeds of the grid")
    option("--methods", nargs="+", default=[], help="only these methods of the grid (by label)")
    option("--strategy", default=None, metavar="NAME", help="as `run` takes it")
    how = status.add_mutually_exclusive_group()
    how.add_argument("--live", action="store_true", help="redraw until every run has ended")
    how.add_argument("--plain", action="store_true", help="print once, as text (the default)")
    how.add_argument("--json", action="store_true", help="print one JSON object")
    option(
        "--every",
        type=_seconds,
        default=5.0,
        metavar="S",
        help="seconds between two looks of --live (default 5)",
    )
    option("--all", action="store_true", help="name every run, not the first 20 of a kind")

    logs = verbs.add_parser("logs", parents=[parents["place"]], help="what a run printed")
    logs.add_argument(
        "run", help="start of a run's identity, method/dataset/ratio/seed, or a part of its title"
    )
    logs.add_argument("--lines", type=_count, default=40, metavar="N", help="the last N lines (default 40)")
    logs.add_argument("--follow", action="store_true", help="print what is added until it ends")


def status(chosen: argparse.Namespace, resolve: Callable[[], Resolved]) -> int:
    """Print where runs stand.

    Args:
        chosen: the command line.
        resolve: gives the runs of the grid that it names; called once, if at all.

    Returns:
        1 if a run has failed, else 0.

    Raises:
        UserError: a filter without a grid, or what `resolve` raises.
    """
    from benchmarks.status.view import as_json, live, plain

    look = _looker(chosen, resolve)
    if chosen.live:
        view = live(look, chosen.every, everything=chosen.all)
        return 0 if view is None else _code(view)
    view = look()
    _show(json.dumps(as_json(view)) if chosen.json else plain(view, everything=chosen.all))
    return _code(view)


def logs(chosen: argparse.Namespace) -> int:
    """Print the end of a run's log.

    Raises:
        UserError: no run is meant, or several.
    """
    from benchmarks.status.logs import follow, resolve, show

    view = overview(chosen.runs, cluster=QueueCache())
    run = resolve(view, chosen.run)
    lines, path = show(run, chosen.runs, chosen.lines)
    _show("\n".join(lines))
    if not chosen.follow:
        return 0
    if path is None:
        raise UserError(f"{run.title}: there is no log to follow")
    store, directory = Workspace(chosen.data, chosen.runs).store, run.directory

    def over() -> bool:
        return directory is not None and store.state(directory).kind in ("done", "failed")

    try:
        follow(path, over)
    except KeyboardInterrupt:
        print(file=sys.stderr)
    return 0


def _looker(chosen: argparse.Namespace, resolve: Callable[[], Resolved]) -> Callable[[], Overview]:
    cluster = QueueCache()
    if chosen.grid is None:
        given = [f"--{name}" for name in FILTERS if getattr(chosen, name)]
        if given:
            raise UserError(f"{', '.join(given)}: these choose runs of a grid; add --grid NAME")
        return lambda: overview(chosen.runs, cluster=cluster)
    grid = resolve()
    stages = list(grid.stages)
    return lambda: overview(chosen.runs, grid.runs, name=f"grid {grid.name}", stages=stages, cluster=cluster)


def _show(text: str) -> None:
    """Print a text whose reader, such as `head`, may have seen enough before its end."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the end


def _code(view: Overview) -> int:
    return 1 if view.of("failed") else 0


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value
