"""What `tables --ranks` prints and writes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from methods.errors import UserError
from results.drawn import FORMATS
from results.text import one_line

if TYPE_CHECKING:
    from results.tables import Table


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--ranks",
        action="store_true",
        help="also ranks and a rating with intervals, practical equivalence, a critical-difference figure",
    )
    parser.add_argument(
        "--rope",
        type=_points,
        default=None,
        metavar="POINTS",
        help="with --ranks: differences up to this are practically none (default: 0.5)",
    )


def check(args: argparse.Namespace) -> None:
    """Raise UserError if the options contradict others."""
    if args.rope is not None and not args.ranks:
        raise UserError("--rope says what --ranks counts as equivalent; add --ranks")
    if args.ranks and args.superseded:
        raise UserError("--ranks is for present results; leave one of --ranks and --superseded out")


def write(
    made: Table, folder: Path, rope: float | None, unwritten: Callable[[Path, OSError], Exception]
) -> None:
    """Print the views of a table and write them, and the figure; too few units are said.

    Args:
        made: the table.
        folder: of the tables.
        rope: region of practical equivalence, points; None for the usual one.
        unwritten: what is raised where the folder cannot be written to.

    Raises:
        OSError: the disk is full.
        UserError: the folder cannot be written to.
    """
    from results.files import atomic_write_bytes
    from results.ranks import ROPE, ranks, to_csv, to_text
    from results.statistics import FEWEST_UNITS
    from results.text import utf8

    stem = f"{made.metric}-{made.rule}-ranks"
    paths = [folder / f"{stem}.{kind}" for kind in ("csv", *FORMATS)]
    found = ranks(made.blocks, ROPE if rope is None else rope)
    try:
        if found is None:
            for path in paths:
                path.unlink(missing_ok=True)  # of an earlier table
            print(
                f"Ranks: not given, because they need {FEWEST_UNITS} (dataset, seed) units and two methods; "
                f"all tested methods share {made.comparison.units}.",
                flush=True,
            )
            return
        print(to_text(found), flush=True)
        contents = {f"{stem}.csv": utf8(to_csv(found))}
        (ranking,) = made.verdict.rankings
        try:
            from results.ranks_figure import files

            drawn = files(found, ranking, made.title(), FORMATS, lambda line: _say(f"{stem}: {line}"))
            contents |= {f"{stem}.{kind}": content for kind, content in drawn.items()}
        except Exception as error:  # the drawing packages are absent or broken
            for path in paths[1:]:
                path.unlink(missing_ok=True)
            _say(f"{stem} is left out: {one_line(f'{type(error).__name__}: {error}')}")
        for name, content in contents.items():
            atomic_write_bytes(folder / name, content)
    except OSError as error:
        raise unwritten(folder, error) from error
    print(f"written to {folder}: {', '.join(contents)}", flush=True)


def _say(line: str) -> None:
    print(f"figure {line}", file=sys.stderr)


def _points(text: str) -> float:
    try:
        points = float(text)
    except ValueError:
        points = 0.0
    if not 0 < points < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of points above 0 and below 100")
    return points
