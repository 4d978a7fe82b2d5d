"""The verbs `tables` and `plots`: what the finished runs of the store say."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cli import costs, intervals, options, ranks, table_diff
from benchmarks.cli.published import with_published
from benchmarks.cli.verify import Check, of_grid
from benchmarks.data.disk import FULL
from benchmarks.plan.summary import PlanSummary
from benchmarks.workspace import Workspace
from methods.errors import UserError
from results.drawn import FORMATS
from results.errors import StoreError
from results.text import one_line

if TYPE_CHECKING:
    from results.intervals import Intervals
    from results.tables import Table


Further = Callable[["Table", Path], None]
OLD_NUMBERS = "All numbers here are SUPERSEDED: earlier versions made them; do not mix them with today's."


def add(verbs: options.Verbs) -> None:
    """Add the verbs."""
    shared = [options.folders(), options.grid(), options.outcome()]
    tables_parser = options.verb(
        verbs,
        "tables",
        tables,
        help="write and print the tables of a grid, or of all that the store has",
        examples=[
            "tables --grid full --ratios 0.05 --rule val --out paper",
            "tables --rule oracle --published",
        ],
        parents=[options.folders(), options.grid(required=False), options.outcome()],
    )
    tables_parser.add_argument(
        "--superseded",
        action="store_true",
        help="the results of earlier versions, which those of today supersede, in a table of their own",
    )
    tables_parser.add_argument(
        "--bib", action="store_true", help="also write references.bib: what the table's runs are to cite"
    )
    tables_parser.add_argument(
        "--published",
        action="store_true",
        help="published numbers in columns beside ours: reproduced, not, or not comparable and why",
    )
    tables_parser.add_argument(
        "--diff",
        nargs=2,
        type=Path,
        default=None,
        metavar=("OLD", "NEW"),
        help="which cells changed between two folders of tables, or two of their CSV files, and by how much",
    )
    tables_parser.add_argument(
        "--verify",
        action="store_true",
        help="recompute every result from its stored predictions; exit code 1 if one differs",
    )
    tables_parser.add_argument(
        "--intervals",
        action="store_true",
        help="also 95 %% intervals of scores and differences, by resampling; the verdict uses them",
    )
    ranks.add(tables_parser)
    costs.add(tables_parser)
    plots_parser = options.verb(
        verbs,
        "plots",
        plots,
        help="write the figures of a grid",
        examples=["plots --grid demo", "plots --grid full --methods csaa fixmatch --out paper --formats pdf"],
        parents=shared,
    )
    plots_parser.add_argument(
        "--formats",
        nargs="+",
        choices=FORMATS,
        default=["png"],
        help="kinds of files: png (the default), pdf, svg",
    )


def tables(args: argparse.Namespace) -> int:
    """Write and print the tables of a grid, or of everything that is finished.

    Returns:
        1 if a run that may be finished cannot be read, or (--verify) is not what its predictions give; both
        are named. Else 0.

    Raises:
        UserError: the grid's runs are not known, or there is no result of the kind that is asked for;
            --published with --superseded; see also `table_diff.show`.
    """
    from benchmarks.cli.planning import known

    if args.diff is not None:
        return table_diff.show(args)
    workspace = options.workspace(args)
    if args.intervals and (args.grid is None or args.superseded):
        raise UserError(
            "--intervals is for the present results of a grid; give --grid, and leave --superseded out"
        )
    ranks.check(args)
    costs.check(args)
    if args.superseded and args.published:
        raise UserError("--published: superseded results are not compared; leave out one of the two")
    further = partial(ranks.write, rope=args.rope, unwritten=_unwritten) if args.ranks else None
    if args.grid is None:
        options.without_grid(args)
        check = Check(workspace.store) if args.verify else None
        chosen = {"superseded": args.superseded, "bib": args.bib, "check": check, "published": args.published}
        unread = write_whole(workspace, args.rule, args.out, further=further, **chosen)
        return _code(unread, check)
    plan = known(args, _remark)
    check = Check(workspace.store, of_grid(args)) if args.verify else None
    if args.superseded:
        write_superseded(plan, workspace, args.rule, args.out, bib=args.bib, check=check)
        return _code((), check)
    chosen = {"bib": args.bib, "check": check, "published": args.published, "further": further}
    found = None
    if args.intervals:
        found = intervals.write(plan, workspace, args.rule, _folder(plan, workspace, args.out), _unwritten)
    unreadable = write(plan, workspace, args.rule, args.out, plots=False, found=found, **chosen)
    if args.costs:
        costs.write(plan, workspace, _folder(plan, workspace, args.out), _unwritten)
    return _code(unreadable, check)


def _code(unread: Collection[str], check: Check | None) -> int:
    return 1 if unread or (check is not None and not check.agrees) else 0


def plots(args: argparse.Namespace) -> int:
    """Write the figures of a grid and print their paths.

    Returns:
        1 if a figure could not be drawn, else 0.

    Raises:
        UserError: its runs are not known.
    """
    from benchmarks.cli.planning import known

    plan, workspace = known(args, _remark), options.workspace(args)
    folder = _folder(plan, workspace, args.out)
    paths, failed = write_figures(plan, workspace, folder, args.rule, args.formats)
    for path in paths:
        print(path)
    return 1 if failed else 0


def write(
    plan: PlanSummary,
    workspace: Workspace,
    rule: str,
    out: Path | None,
    *,
    plots: bool,
    bib: bool = False,
    check: Check | None = None,
    published: bool = False,
    found: Intervals | None = None,
    further: Further | None = None,
) -> set[str]:
    """Write the table of a grid in every format, print it, and write the figures.

    A disk that is full and a figure that cannot be drawn do not keep the table from being printed.

    Args:
        plan: the runs.
        workspace: where their results lie.
        rule: selection rule.
        out: folder for tables and figures; None is `workspace.tables` and the grid's name.
        plots: whether to write the figures too.
        bib: whether to write the references of the finished runs too.
        check: recomputes the results; None leaves it.
        published: whether to put published numbers beside ours.
        found: intervals of its scores; None where they were not computed.
        further: gets the table and the folder at the end.

    Returns:
        Identities of the runs whose folder or result cannot be read; each is named on stderr.

    Raises:
        OSError: the disk is full.
        UserError: the folder cannot be written to.
    """
    from results.frames import collect
    from results.lineage import mark, note, outdated
    from results.tables import table

    folder = _folder(plan, workspace, out)
    old = plan.superseded(workspace)
    wanted = [run.wanted() for run in plan.runs]
    frame = mark(collect(workspace.store, wanted), old)
    titles = {run.run_id: run.title for run in plan.runs}
    bad = frame[frame["state"] == "unreadable"]
    unread = dict(zip(bad["run_id"], bad["detail"], strict=True))
    for run_id, detail in unread.items():
        _unreadable(f"{titles[run_id]}: {detail}")
    remarks = [outdated(workspace.store, [run.directory(workspace) for run in plan.runs]), note(old)]
    remarks += check.remarks(wanted) if check else []
    made = table(frame, rule, remarks=[*filter(None, remarks)], intervals=found)
    made = with_published(made, workspace, wanted) if published else made
    paths = _written(made, folder, name=plan.name)
    if plots:
        paths += write_figures(plan, workspace, folder, rule)[0]
    _say_written(folder, paths)
    _cite(workspace, wanted, folder, bib)
    if further:
        further(made, folder)
    return set(unread)


def write_superseded(
    plan: PlanSummary, workspace: Workspace, rule: str, out: Path | None, *, bib: bool, check: Check | None
) -> None:
    """Write and print a table of superseded results, and of nothing else.

    Args:
        plan: the runs that supersede them.
        workspace: where the results lie.
        rule: selection rule.
        out: as for `write`.
        bib: as for `write`.
        check: as for `write`.

    Raises:
        OSError: the disk is full.
        UserError: there are none, or the folder cannot be written to.
    """
    from results.frames import collect
    from results.lineage import as_wanted
    from results.tables import table

    wanted, rows = as_wanted([run.wanted() for run in plan.runs], plan.superseded(workspace))
    if not wanted:
        raise UserError(
            f"grid {plan.name}: none of its runs supersedes a stored result; leave --superseded out"
        )
    remarks = [OLD_NUMBERS, *(f"{row}." for row in rows)]
    remarks += check.remarks(wanted) if check else []
    made = table(collect(workspace.store, wanted), rule, remarks=remarks)
    folder = _folder(plan, workspace, out)
    _say_written(folder, _written(made, folder, f"{made.metric}-{rule}-superseded", plan.name))
    _cite(workspace, wanted, folder, bib)


def write_whole(
    workspace: Workspace,
    rule: str,
    out: Path | None,
    *,
    superseded: bool,
    bib: bool,
    check: Check | None,
    published: bool = False,
    further: Further | None = None,
) -> list[str]:
    """Write and print a table of all finished runs of the store.

    Args:
        workspace: where the results lie.
        rule: selection rule.
        out: folder for the table; None is `workspace.tables` and "store".
        superseded: the results of earlier versions instead of those of today.
        bib: as for `write`.
        check: as for `write`.
        published: as for `write`.
        further: as for `write`.

    Returns:
        A line on each run, or folder of runs, that cannot be read; they were said on stderr.

    Raises:
        OSError: the disk is full.
        UserError: there are none, or the folder cannot be written to.
    """
    from benchmarks.cli.planning import planned_specs
    from results.frames import collect
    from results.tables import table
    from results.whole import finished

    unread: list[str] = []
    today, old = finished(workspace.store, planned_specs(workspace), unread.append)
    for line in unread:
        _unreadable(line)
    wanted = old if superseded else today
    if not wanted:
        other = ""
        if old and not superseded:
            other = f", but {len(old)} of earlier versions: `tables --superseded` prints them"
        kind = "superseded" if superseded else "finished"
        raise UserError(f"{workspace.store.root}: no {kind} result{other}")
    remarks = ["All finished runs of the store; no grid says how many there should be."]
    if superseded:
        remarks.append(OLD_NUMBERS)
    elif old:
        remarks.append(
            f"Superseded, and in no cell: {len(old)} results of earlier versions; `tables --superseded` "
            "prints them."
        )
    if unread:
        remarks.append(f"Unreadable, and in no cell: {len(unread)}.")
    remarks += check.remarks(wanted) if check else []
    made = table(collect(workspace.store, wanted), rule, remarks=remarks)
    if published:
        made = with_published(made, workspace, wanted)
    folder, stem = out or workspace.tables / "store", "-superseded" if superseded else ""
    _say_written(folder, _written(made, folder, f"{made.metric}-{rule}{stem}", "store"))
    _cite(workspace, wanted, folder, bib)
    if further:
        further(made, folder)
    return unread


def _written(made: Table, folder: Path, stem: str = "", name: str = "") -> list[Path]:
    """Write a table, and print it whether or not that worked; see `write_tables`."""
    from results.writers import to_text, write_tables

    paths, problem = [], None
    try:
        paths = write_tables(made, folder, stem, name)
    except OSError as error:
        problem = _unwritten(folder, error)
    print(to_text(made), flush=True)
    if problem:
        raise problem
    return paths


def _cite(workspace: Workspace, wanted: list[dict[str, Any]], folder: Path, bib: bool) -> None:
    if bib:
        from benchmarks.cli import bibliography

        try:
            print(bibliography.write(workspace.store, wanted, folder))
        except OSError as error:
            raise _unwritten(folder, error) from error


def _say_written(folder: Path, paths: list[Path]) -> None:
    print(f"written to {folder}: {', '.join(path.name for path in paths)}")


def write_figures(
    plan: PlanSummary, workspace: Workspace, folder: Path, rule: str, formats: Sequence[str] = ("png",)
) -> tuple[list[Path], list[str]]:
    """Write the figures that the finished runs allow; what goes wrong is named on stderr.

    Returns:
        Their paths, and the lines on what was left out.
    """
    failed: list[str] = []

    def left_out(line: str) -> None:
        failed.append(line)
        print(f"figure {line}", file=sys.stderr)

    def remark(line: str) -> None:
        print(f"figure {line}", file=sys.stderr)

    try:
        from results.plots import write_plots

        wanted = [run.wanted() for run in plan.runs]
        paths = write_plots(
            workspace.store, wanted, folder, rule, formats=formats, failed=left_out, remark=remark
        )
    except StoreError:
        raise
    except Exception as error:  # the drawing packages are absent or broken, or the folder is read-only
        left_out(f"files are left out: {one_line(f'{type(error).__name__}: {error}')}")
        paths = []
    return paths, failed


def _unreadable(line: str) -> None:
    print(f"unreadable: {line}", file=sys.stderr)


def _remark(line: str) -> None:
    print(f"remark: {line}", file=sys.stderr)


def _unwritten(folder: Path, error: OSError) -> Exception:
    """What is raised where tables cannot be written: a full disk stays an `OSError`, with the folder."""
    if error.errno in FULL:
        return OSError(error.errno, error.strerror, str(folder))
    return UserError(f"{folder}: cannot be written: {error.strerror}")


def _folder(plan: PlanSummary, workspace: Workspace, out: Path | None) -> Path:
    return out or workspace.tables / plan.name
