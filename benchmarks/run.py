"""The command line of SSMLL-Bench.

    python benchmarks/run.py --grid demo            run what is missing of a grid, print its table
    python benchmarks/run.py list                   grids, methods, datasets
    python benchmarks/run.py prepare DATASET        check, bring and cache a dataset
    python benchmarks/run.py splits verify          are the labelled subsets what they should be?
    python benchmarks/run.py plan --grid NAME       what would run, and what it would cost
    python benchmarks/run.py status [--grid NAME]   where runs stand; --live, --json
    python benchmarks/run.py logs RUN               what a run printed; --follow
    python benchmarks/run.py retry --grid NAME      run again what failed
    python benchmarks/run.py cancel [GRID]          cancel SLURM jobs
    python benchmarks/run.py doctor                 is the SLURM cluster ready?
    python benchmarks/run.py tables --grid NAME     write and print its tables
    python benchmarks/run.py plots --grid NAME      write its figures
    python benchmarks/run.py why RUN                where a number comes from

`--launcher slurm` submits runs to a cluster instead. `torchrun`, `accelerate launch` and `srun` may
call the first form too: their processes then train each run together.

Exit codes: 0 everything done, 1 some runs failed (they are named), 2 bad usage, 75 asked to stop
(SIGTERM, SIGUSR2), 130 Ctrl-C. After the last two the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # called as a file: the packages lie beside this folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    sys.path = [entry for entry in sys.path if entry != str(Path(__file__).resolve().parent)]

from benchmarks.cli import datasets as commands_prepare
from benchmarks.cli import slurm as commands_cluster
from benchmarks.cli import splits as commands_splits
from benchmarks.cli import status as commands_status
from benchmarks.progress import Progress, silent
from benchmarks.signals import Stopped
from benchmarks.workspace import Workspace
from methods.errors import UserError, nearest
from results.errors import StoreError
from slurm.protocol import EXIT_STOPPED

if TYPE_CHECKING:
    from benchmarks.launch.local import Local
    from benchmarks.plan.grid import Grid
    from benchmarks.plan.jobs import Job

RULES = ("last", "val", "oracle")


class _Parser(argparse.ArgumentParser):
    """Names the nearest verb or flag instead of argparse's list."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; see `{self.prog} --help`")


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    place = _Parser(add_help=False)
    place.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("SSMLL_DATA", "data")),
        help="folder of the datasets (default: $SSMLL_DATA or ./data)",
    )
    place.add_argument(
        "--runs",
        type=Path,
        default=Path(os.environ.get("SSMLL_RUNS", "runs")),
        help="folder of the run store (default: $SSMLL_RUNS or ./runs)",
    )
    place.add_argument(
        "--workers",
        type=_positive,
        default=None,
        metavar="N",
        help="worker processes (default: one a GPU, else one a core)",
    )
    grid = _Parser(add_help=False)
    grid.add_argument(
        "--strategy",
        default=None,
        metavar="NAME",
        help="how steps are spread over processes, instead of what the recipe says: "
        "ddp, or DeepSpeed's zero1 or zero2 (in a run's identity)",
    )
    grid.add_argument("--grid", required=True, help="a grid's name, or the path of a .toml file")
    grid.add_argument("--ratios", type=float, nargs="+", default=[], help="only these ratios")
    grid.add_argument("--seeds", type=int, nargs="+", default=[], help="only these seeds")
    grid.add_argument("--methods", nargs="+", default=[], help="only these methods (by label)")
    rule = _Parser(add_help=False)
    rule.add_argument(
        "--rule",
        choices=RULES,
        default="last",
        help="which epoch's number: last (EMA weights), val (held-out labels), or "
        "oracle (best on test; not a fair number)",
    )
    rule.add_argument("--out", type=Path, default=None, help="folder for tables and figures")

    top = _Parser(prog="run.py", description=__doc__.splitlines()[0] if __doc__ else None)
    verbs = top.add_subparsers(dest="verb", required=True, parser_class=_Parser)
    run = verbs.add_parser("run", parents=[place, grid, rule], help="run what is missing of a grid")
    retry = verbs.add_parser(
        "retry", parents=[place, grid, rule], help="run again what failed, or was begun too often"
    )
    retry.add_argument("--failed", action="store_true", help="only runs that failed; not those that died")
    for verb in (run, retry):
        _add_execution(verb)
    listing = verbs.add_parser("list", help="grids, recipes, methods, datasets")
    listing.add_argument("pattern", nargs="?", default="*", help="wildcard, such as '*coop*'")
    commands_prepare.add(verbs, {"place": place})
    commands_splits.add(verbs, {"place": place})
    plan = verbs.add_parser("plan", parents=[place, grid], help="what would run, and its cost")
    plan.add_argument(
        "--processes",
        type=_positive,
        default=1,
        metavar="N",
        help="processes (GPUs) that train each run together (default 1)",
    )
    plan.add_argument(
        "--probe", action="store_true", help="measure a few steps of what was never measured, in jobs"
    )
    plan.add_argument(
        "--save", type=Path, default=None, metavar="FILE", help="write the bundles for slurm/array.sbatch"
    )
    commands_cluster.add_flags(plan)
    commands_cluster.add(verbs, {"place": place})
    commands_status.add(verbs, {"place": place})
    verbs.add_parser("tables", parents=[place, grid, rule], help="write and print a grid's tables")
    verbs.add_parser("plots", parents=[place, grid, rule], help="write a grid's figures")
    why = verbs.add_parser("why", parents=[place], help="where a number comes from")
    why.add_argument("run", help="start of a run's identity, or dataset/method/ratio/seed")
    return top


def _add_execution(verb: argparse.ArgumentParser) -> None:
    """The options of the verbs that execute runs."""
    verb.add_argument("--dry-run", action="store_true", help="show the plan and stop")
    verb.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="time between checkpoints inside an epoch (default 30)",
    )
    verb.add_argument(
        "--processes",
        type=_positive,
        default=1,
        metavar="N",
        help="processes (GPUs) that train each run together (default 1)",
    )
    verb.add_argument(
        "--hang-seconds",
        type=float,
        default=600.0,
        metavar="S",
        help="a group of processes that does not move for so long ends, the late one "
        "is named and the run counts as failed (default 600)",
    )
    verb.add_argument("--no-plots", action="store_true", help="leave the figures out")
    verb.add_argument("--yes", action="store_true", help="submit to SLURM without asking")
    verb.add_argument("--wait", action="store_true", help="with --launcher slurm: until the jobs have ended")
    commands_cluster.add_flags(verb)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        if words and not words[0].startswith("-") and words[0] not in COMMANDS:
            raise UserError(f"no command {words[0]!r}{nearest(words[0], COMMANDS)}")
        if words and words[0].startswith("-") and words[0] not in ("-h", "--help"):
            words = ["run", *words]  # `--grid NAME` is the main door
        chosen = parser().parse_args(words)
        return COMMANDS[chosen.verb](chosen)
    except (UserError, StoreError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except Stopped:
        print("asked to stop: finished runs are kept; the same command goes on from here", file=sys.stderr)
        return EXIT_STOPPED
    except KeyboardInterrupt:
        print("interrupted: finished runs are kept; the same command goes on from here", file=sys.stderr)
        return 130


def _workspace(chosen: argparse.Namespace) -> Workspace:
    return Workspace(chosen.data, chosen.runs)


def _resolved(
    chosen: argparse.Namespace,
    counter: Callable[[str], Callable[[int, int], None]],
    announce: Callable[[str], None] = lambda line: None,
) -> tuple[Grid, list[Job]]:
    from benchmarks.plan.jobs import resolve

    grid = _grid(chosen)
    workers = chosen.workers or min(os.cpu_count() or 1, 8)
    return grid, resolve(grid, _workspace(chosen), progress=counter, workers=workers, announce=announce)


def _grid(chosen: argparse.Namespace) -> Grid:
    from benchmarks.plan.grid import load, restrict, with_strategy

    grid = restrict(load(chosen.grid), chosen.ratios, chosen.seeds, chosen.methods)
    return with_strategy(grid, chosen.strategy)


def _run(chosen: argparse.Namespace) -> int:
    from benchmarks.plan.jobs import remarks

    if chosen.launcher == "slurm":
        return _run_on_cluster(chosen)
    commands_cluster.check_local(chosen)
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        return _run_in_group(chosen)
    progress, workspace = Progress(), _workspace(chosen)
    grid, jobs = _resolved(chosen, progress.counter, progress.line)
    missing = _missing(chosen, jobs, workspace)
    if chosen.dry_run:
        print(_overview(grid, jobs, workspace))
        return 0
    if missing:
        progress.line(_overview(grid, jobs, workspace))
        for remark in remarks(jobs):
            progress.line(remark)
        local = _local(chosen)
        each = f"{local.processes} processes of " if local.processes > 1 else ""
        progress.line(f"{len(missing)} runs on {local.workers} workers of {each}{local.threads} threads")
        started = time.monotonic()
        local.execute(grid, missing, workspace, progress.line)
        progress.line(f"{grid.name}: {time.monotonic() - started:.0f} s")
    return _finish(chosen, grid, jobs, workspace)


def _missing(chosen: argparse.Namespace, jobs: list[Job], workspace: Workspace) -> list[Job]:
    """The runs to execute: what is not done; of `retry`, what was begun and came to no end."""
    from benchmarks.plan.jobs import states

    found = states(jobs, workspace)
    if chosen.verb == "retry":
        wanted = {"failed"} if chosen.failed else {"failed", "dead"}
    else:
        wanted = set(found) - {"done"}
    return [job for kind, group in found.items() if kind in wanted for job in group]


def _run_on_cluster(chosen: argparse.Namespace) -> int:
    progress, workspace = Progress(), _workspace(chosen)
    asked = commands_cluster.ready(chosen, _grid(chosen), workspace, progress.line)
    grid, jobs = _resolved(chosen, progress.counter, progress.line)
    only = {job.spec.run_id for job in _missing(chosen, jobs, workspace)}
    if commands_cluster.execute(chosen, grid, jobs, only, asked, workspace, progress.line):
        return _finish(chosen, grid, jobs, workspace)
    return 0


def _local(chosen: argparse.Namespace) -> Local:
    from benchmarks.launch.local import Local

    return Local.default(
        chosen.workers,
        chosen.processes,
        chosen.checkpoint_seconds,
        chosen.hang_seconds,
        chosen.strategy,
    )


def _run_in_group(chosen: argparse.Namespace) -> int:
    """Work as one of the processes that torchrun, accelerate or srun has started."""
    from benchmarks.launch.failures import GroupBroken
    from benchmarks.launch.local import plan_of
    from benchmarks.launch.worker import work
    from benchmarks.plan.jobs import process_kinds

    main = os.environ.get("RANK", "0") == "0"
    grid, jobs = _resolved(chosen, Progress().counter if main else silent)
    workspace = _workspace(chosen)
    if chosen.dry_run:
        raise UserError("--dry-run shows a plan: call it without torchrun")
    if len(process_kinds(jobs)) > 1:
        names = ", ".join(f"{precision} with {strategy}" for precision, strategy in process_kinds(jobs))
        raise UserError(
            f"grid {grid.name!r} needs processes of several kinds ({names}); run it with "
            "--processes N instead, or a part of it at a time with --methods"
        )
    plan = plan_of(grid, jobs, workspace, _local(chosen))
    try:
        code = work({**plan, "threads": 0}, None, Progress().line)
    except GroupBroken as broken:
        sys.stdout.flush()
        os._exit(broken.code)  # the group's communication may wait for ever at a normal end
    return code or (_finish(chosen, grid, jobs, workspace) if main else 0)


def _finish(chosen: argparse.Namespace, grid: Grid, jobs: list[Job], workspace: Workspace) -> int:
    """Print the table and name what is missing in it."""
    from benchmarks.cli.report import write
    from benchmarks.plan.jobs import states

    print(write(grid, jobs, workspace, chosen.rule, chosen.out, plots=not chosen.no_plots))
    left = {kind: group for kind, group in states(jobs, workspace).items() if kind != "done"}
    for kind, group in left.items():
        for job in group:
            detail = workspace.store.state(job.directory(workspace)).detail
            print(f"{kind}: {job.spec.title}" + (f": {detail}" if detail else ""), file=sys.stderr)
    return 1 if left else 0


def _overview(grid: Grid, jobs: list[Job], workspace: Workspace) -> str:
    from benchmarks.plan.jobs import states

    counts = ", ".join(f"{len(group)} {kind}" for kind, group in states(jobs, workspace).items())
    stages = {stage.stage_id for job in jobs for stage in job.stages}
    return f"grid {grid.name}: {len(jobs)} runs ({counts}), {len(stages)} shared stages"


def _list(chosen: argparse.Namespace) -> int:
    from fnmatch import fnmatch

    import methods
    from benchmarks.data.registry import available as datasets
    from benchmarks.plan import grid

    sections = {
        "grids": grid.available("grids"),
        "recipes": grid.available("recipes"),
        "methods": methods.available(),
        "datasets": datasets(),
    }
    for title, names in sections.items():
        found = [name for name in names if fnmatch(name, chosen.pattern)]
        if found:
            print(f"{title}: {', '.join(found)}")
    return 0


def _plan(chosen: argparse.Namespace) -> int:
    from benchmarks.plan.jobs import remarks

    progress, workspace = Progress(), _workspace(chosen)
    if chosen.launcher == "slurm":
        asked = commands_cluster.ready(chosen, _grid(chosen), workspace, progress.line)
        grid, jobs = _resolved(chosen, progress.counter)
        print(commands_cluster.plan(chosen, grid, jobs, asked, workspace, progress.line))
        return 0
    commands_cluster.check_local(chosen)
    grid, jobs = _resolved(chosen, progress.counter)
    print(_overview(grid, jobs, workspace))
    for remark in remarks(jobs):
        print(remark)
    for job in jobs:
        state = workspace.store.state(job.directory(workspace)).kind
        print(f"{state:12} {job.spec.title}")
    return 0


def _status(chosen: argparse.Namespace) -> int:
    def resolved() -> commands_status.Resolved:
        grid, jobs = _resolved(chosen, Progress().counter)
        workspace = _workspace(chosen)
        return commands_status.Resolved(
            grid.name,
            [(job.spec.run_id, job.spec.title, job.directory(workspace)) for job in jobs],
            {stage.directory(workspace) for job in jobs for stage in job.stages},
        )

    return commands_status.status(chosen, resolved)


def _tables(chosen: argparse.Namespace) -> int:
    from benchmarks.cli.report import write

    grid, jobs = _resolved(chosen, Progress().counter)
    print(write(grid, jobs, _workspace(chosen), chosen.rule, chosen.out, plots=False))
    return 0


def _plots(chosen: argparse.Namespace) -> int:
    from benchmarks.cli.report import write_figures

    grid, jobs = _resolved(chosen, Progress().counter)
    for path in write_figures(grid, jobs, _workspace(chosen), chosen.rule, chosen.out):
        print(path)
    return 0


def _why(chosen: argparse.Namespace) -> int:
    from results.why import why

    print(why(_workspace(chosen).store, chosen.run))
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "list": _list,
    "prepare": commands_prepare.execute,
    "splits": commands_splits.execute,
    "plan": _plan,
    "status": _status,
    "tables": _tables,
    "plots": _plots,
    "why": _why,
    "retry": _run,
    "cancel": commands_cluster.cancel,
    "doctor": commands_cluster.doctor,
    "logs": commands_status.logs,
}


if __name__ == "__main__":
    sys.exit(main())
