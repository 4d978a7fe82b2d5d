"""The verb `splits`: labelled subsets as files.

`splits write DATASET` (or `--grid NAME`) draws them and writes their files; `splits verify` draws
the splits of files again and compares.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cli import options
from benchmarks.progress import Progress
from methods.errors import UserError
from results.text import listed

if TYPE_CHECKING:
    from benchmarks.data.dataset import Dataset
    from benchmarks.data.registry import DatasetSpec
    from benchmarks.data.splits.budget import Budget

RATIOS = (0.05, 0.1, 0.15, 0.2)
NAMED = 5
"""Absent classes that a row of the table names."""
HEADER = ("dataset", "rule", "ratio", "seed", "labelled", "absent classes", "sha256")


def add(verbs: options.Verbs) -> None:
    """Add the verb and its two actions."""
    examples = ["splits write voc2012 --ratios 0.05 0.1 --seeds 1 2 3", "splits verify"]
    splits = verbs.add_parser(
        "splits",
        help="write labelled subsets as files, or verify them",
        epilog=options.epilog(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = splits.add_subparsers(dest="action", required=True)
    write = options.verb(
        actions,
        "write",
        write_splits,
        help="draw splits and write their files",
        examples=[examples[0], "splits write --grid full"],
        parents=[options.folders()],
    )
    write.add_argument("dataset", nargs="?", metavar="DATASET", help="a dataset's name")
    write.add_argument("--grid", default=None, help="instead: a grid, for all its splits")
    write.add_argument("--root", default=None, help="where the dataset lies, if not under --data")
    write.add_argument(
        "--allow-counts",
        action="store_true",
        help="accept a copy whose image counts differ from the classic ones",
    )
    write.add_argument(
        "--ratios",
        type=options.ratio,
        nargs="+",
        default=[],
        help="labelled shares, '100 images' or '4 per class' (default: .05 .1 .15 .2, or the grid's)",
    )
    write.add_argument("--seeds", type=int, nargs="+", default=[], help="seeds (default: 1, or the grid's)")
    write.add_argument(
        "--split-seeds",
        type=int,
        nargs="+",
        default=[],
        help="with --grid: only the splits of these seeds, of the grid's `split_seeds` or else of its seeds",
    )
    write.add_argument(
        "--rule",
        choices=("published", "stratified"),
        default=None,
        help="prefix of a seeded permutation (default), or every class kept in its share",
    )
    verify = options.verb(
        actions,
        "verify",
        verify_splits,
        help="draw the splits of files again and compare",
        examples=["splits verify", "splits verify data/splits/voc2012"],
        parents=[options.folders()],
    )
    verify.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="files, folders of them (default: splits/ under --data)",
    )


def write_splits(args: argparse.Namespace) -> int:
    """Draw splits, write their files and print one row for each.

    Raises:
        UserError: bad usage, an absent dataset, a folder that cannot be written to, or an existing
            file that differs from what is drawn.
    """
    from benchmarks.data.registry import open_dataset
    from benchmarks.data.splits.budget import draw_budget
    from benchmarks.data.splits.files import FOLDER, SplitRecord, keep
    from benchmarks.data.splits.lists import is_file
    from benchmarks.data.splits.rules import absent_classes, sees_hidden_labels

    wanted = _wanted(args)
    progress, opened, problems = Progress(), {}, []
    for spec in dict.fromkeys(spec for spec, _, _ in wanted):
        try:
            opened[spec] = open_dataset(spec, args.data, progress=progress.counter(f"render {spec.name}"))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    folder, rows = args.data / FOLDER, [HEADER]
    for spec, budget, seed in wanted:
        dataset: Dataset = opened[spec]
        drawn, rule, ratio = draw_budget(dataset, spec.split, budget, seed)
        for note in drawn.notes:
            progress.line(note)
        if sees_hidden_labels(rule, len(drawn.unlabelled)):
            progress.line(f"{dataset.name}: {rule} reads the labels of all training images")
        record = SplitRecord.of(dataset, spec.table(), rule, ratio, seed, drawn.labelled)
        if not is_file(spec.split):  # a user's list is a file already
            outcome = keep(folder, record)
            if outcome not in ("written", "present"):
                raise UserError(f"{record.path(folder)}: cannot be written: {outcome}")
        rows.append(
            (
                dataset.name,
                spec.split,
                budget.label or f"{ratio:g}",
                str(seed),
                f"{len(drawn.labelled):,}",
                _names(absent_classes(dataset, drawn.labelled)),
                record.sha256[:16],
            )
        )
    widths = [max(len(row[k]) for row in rows) for k in range(len(HEADER))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())
    progress.line(f"files are in {folder}")
    return 0


def _wanted(args: argparse.Namespace) -> list[tuple[DatasetSpec, Budget, int]]:
    """Dataset, budget and seed of each split that the command line names, without repeats."""
    from benchmarks.data.registry import DatasetSpec
    from benchmarks.data.splits.budget import Budget

    if (args.dataset is None) == (args.grid is None):
        raise UserError("splits write: name either a dataset or a --grid")
    if args.grid is None:
        if args.split_seeds:
            raise UserError("splits write: --split-seeds goes with --grid; for a dataset write --seeds")
        spec = DatasetSpec(
            name=args.dataset,
            root=args.root,
            allow_counts=args.allow_counts,
            split=args.rule or "published",
        )
        budgets = [Budget.of(ratio, "--ratios") for ratio in args.ratios or RATIOS]
        return [(spec, budget, seed) for budget in budgets for seed in args.seeds or [1]]
    from benchmarks.plan.grid import load, restrict

    for flag, given in (
        ("--root", args.root),
        ("--allow-counts", args.allow_counts),
        ("--rule", args.rule),
    ):
        if given:
            raise UserError(f"splits write --grid: {flag} belongs to a dataset in the grid file")
    grid = restrict(load(args.grid), args.ratios, args.seeds, split_seeds=args.split_seeds)
    for spec in grid.datasets:
        if spec.skip_bad:
            raise UserError(
                f"dataset {spec.alias!r} leaves unreadable images out (skip_bad), which are known "
                "after its images are prepared; `run` then writes its split files"
            )
    return list(
        dict.fromkeys(
            (cell.dataset, Budget.of(cell.budget or cell.ratio, grid.name), cell.subset_seed)
            for cell in grid.cells
        )
    )


def _names(absent: tuple[str, ...]) -> str:
    return listed(absent, NAMED) or "none"


def verify_splits(args: argparse.Namespace) -> int:
    """Draw the splits of files again and compare.

    Returns:
        The exit code: 0, or 1 when a file differs.

    Raises:
        UserError: no file is found, or a dataset is absent.
    """
    from benchmarks.data.registry import DatasetSpec, open_dataset
    from benchmarks.data.splits.files import FOLDER, SplitRecord, Verifier

    progress = Progress()

    def opened(record: SplitRecord) -> Dataset:
        spec = DatasetSpec.from_table(record.reader, "published")  # opening it draws nothing
        return open_dataset(spec, args.data, progress=progress.counter(f"render {spec.name}"))

    verifier = Verifier(opened)
    files = _files(args.paths or [args.data / FOLDER])
    different = 0
    for file in files:
        finding = verifier.check(file)
        different += bool(finding.problem)
        parts = [str(file), finding.text, finding.problem]
        print(("differs: " if finding.problem else "ok: ") + ": ".join(p for p in parts if p))
    progress.line(f"{len(files)} split files, {different} of them differ")
    return 1 if different else 0


def _files(paths: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        if not inside or not inside[0].exists():
            raise UserError(f"no split file in {path}; write some: run.py splits write DATASET")
        found += inside
    return list(dict.fromkeys(found))
