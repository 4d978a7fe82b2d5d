"""The verb `published`: numbers that papers print, listed and filtered."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.cli import options
from benchmarks.workspace import Workspace
from methods.errors import UserError, nearest
from results.columns import percent

if TYPE_CHECKING:
    from results.published import Number
    from results.tables import Table

COUNT = " images"
"""How a budget ends that is a number of images."""


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    parser = options.verb(
        verbs,
        "published",
        published,
        help="list the numbers that papers print, with source, selection rule and doubts",
        examples=[
            "published --method cap --dataset coco2014 --ratio 0.05",
            "published --setting 'SSMLL+OOD*'",
        ],
    )
    text = "only {}, by name or wildcard; several may follow"
    parser.add_argument(
        "--method",
        nargs="+",
        default=[],
        help=text.format("these methods (their name in the source, or ours)"),
    )
    parser.add_argument("--dataset", nargs="+", default=[], help=text.format("these datasets"))
    parser.add_argument(
        "--ratio", nargs="+", type=options.ratio, default=[], help="only these budgets (0.05, '1000 images')"
    )
    parser.add_argument("--setting", nargs="+", default=[], help=text.format("these settings"))
    parser.add_argument("--backbone", nargs="+", default=[], help=text.format("these backbones"))
    parser.add_argument("--metric", nargs="+", default=[], help=text.format("these metrics"))
    parser.add_argument("--csv", action="store_true", help="print the files' own columns as CSV")


def published(args: argparse.Namespace) -> int:
    """Print the published numbers that the options choose.

    Raises:
        UserError: a name that no number has, or nothing that has all that is asked for.
        StoreError: a file of published numbers is damaged.
    """
    from results.published import FIELDS, read

    numbers = chosen(read(), args)
    if args.csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows([FIELDS, *(each.record() for each in numbers)])
    else:
        print(text(numbers))
    return 0


def with_published(made: Table, workspace: Workspace, wanted: list[dict[str, Any]]) -> Table:
    """A table with the published numbers beside ours, for `tables --published`.

    Raises:
        StoreError: a file of published numbers is damaged.
    """
    from results.published import read
    from results.reproduced import beside

    means = {place: cell.mean for place, cell in made.cells.items()}
    found = beside(workspace.store, wanted, read(), means, made.rule, made.metric)
    return dataclasses.replace(made, published=found)


def chosen(numbers: Sequence[Number], args: argparse.Namespace) -> list[Number]:
    """The numbers that have one of the values of each option that is given.

    Args:
        numbers: all of them.
        args: method, dataset, setting, backbone, metric: names or wildcards; ratio: budgets.

    Raises:
        UserError: as for `published`.
    """
    from results.reproduced import NAMES

    found = list(numbers)
    for name in ("method", "dataset", "setting", "backbone", "metric"):
        patterns = getattr(args, name)
        if patterns:
            ours = {ours: list(theirs) for ours, theirs in NAMES.items()} if name == "method" else {}
            allowed = matching(name, patterns, [getattr(each, name) for each in numbers], ours)
            found = [each for each in found if getattr(each, name) in allowed]
    if args.ratio:
        found = [each for each in found if any(has_budget(each, budget) for budget in args.ratio)]
    if not found:
        asked = ", ".join(
            f"--{name} {' '.join(map(str, getattr(args, name)))}"
            for name in ("method", "dataset", "ratio", "setting", "backbone", "metric")
            if getattr(args, name)
        )
        raise UserError(f"no published number has all of {asked}; leave one out to see what there is")
    return found


def matching(
    name: str, patterns: Iterable[str], values: Iterable[str], ours: dict[str, list[str]]
) -> set[str]:
    """The values that names or wildcards mean; capitals do not count.

    Args:
        name: of the option.
        patterns: what was given.
        values: what there is.
        ours: names of this harness, and what they are called in the sources.

    Raises:
        UserError: a pattern means none.
    """
    from fnmatch import fnmatchcase

    known = {value for value in values if value}
    allowed: set[str] = set()
    for pattern in patterns:
        folded = pattern.casefold()
        # A name may have signs that a wildcard has too.
        means = {
            value for value in known if value.casefold() == folded or fnmatchcase(value.casefold(), folded)
        }
        means |= known.intersection(ours.get(folded, ()))
        if not means:
            raise UserError(
                f"--{name}: no published number of {pattern!r}{nearest(pattern, {*known, *ours})}"
            )
        allowed |= means
    return allowed


def has_budget(number: Number, budget: float | str) -> bool:
    """Whether a number is for a labelled share, or for a number of images.

    Raises:
        UserError: a budget of another kind.
    """
    if isinstance(budget, float):
        return number.ratio is not None and abs(number.ratio - budget) < 1e-9
    if not budget.endswith(COUNT):
        raise UserError(
            f"--ratio {budget}: the sources have shares and numbers of images, such as '1000 images'"
        )
    return number.n_labelled == int(budget.removesuffix(COUNT))


def text(numbers: Sequence[Number]) -> str:
    """A table for each source and selection rule, with what is noted and doubted of them below."""
    groups: dict[tuple[str, ...], list[Number]] = {}
    for each in numbers:
        how = f"selection: {each.selection_rule or 'not stated'}; seeds: {each.seeds or 'not stated'}"
        groups.setdefault((each.source, each.evidence, how), []).append(each)
    blocks = [
        "\n".join([f"{source} ({evidence}; {how})", *_table(rows)])
        for (source, evidence, how), rows in groups.items()
    ]
    return "\n\n".join([*blocks, f"{len(numbers)} {'numbers' if len(numbers) > 1 else 'number'}."])


def _table(rows: Sequence[Number]) -> list[str]:
    from tabulate import tabulate

    remarks: dict[str, int] = {}
    for row in rows:
        for remark in _remarks(row):
            remarks.setdefault(remark, len(remarks) + 1)
    cells = [
        [
            row.method,
            row.backbone or "not stated",
            row.resolution,
            row.dataset,
            row.setting,
            _labelled(row),
            row.metric,
            str(row),
            " ".join(f"[{remarks[remark]}]" for remark in _remarks(row)),
        ]
        for row in rows
    ]
    head = ["method", "backbone", "px", "dataset", "setting", "labelled", "metric", "value", "remarks"]
    if not remarks:
        head, cells = head[:-1], [row[:-1] for row in cells]
    body = tabulate(cells, head, tablefmt="simple", disable_numparse=True)
    return [
        *(line.rstrip() for line in body.splitlines()),
        *(f"[{number}] {remark}" for remark, number in remarks.items()),
    ]


def _remarks(row: Number) -> list[str]:
    return [*([row.note] if row.note else []), *([f"doubted: {row.doubt}"] if row.doubt else [])]


def _labelled(row: Number) -> str:
    share = "" if row.ratio is None else percent(row.ratio)
    if row.n_labelled is None:
        return share
    return f"{share} ({row.n_labelled})" if share else f"{row.n_labelled} images"
