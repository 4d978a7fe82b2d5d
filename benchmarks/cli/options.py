"""Options that several verbs share, and the parser that knows the nearest right word."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from benchmarks.arguments import folder, one_line, positive
from benchmarks.workspace import Workspace
from methods.errors import UserError
from results.schema import RULES

if TYPE_CHECKING:
    from benchmarks.plan.grid import Grid

RUN = "python benchmarks/run.py"
"""How examples call the command line."""
Verbs = Any
"""What `argparse.ArgumentParser.add_subparsers` gives; the class has no public name."""
Execute = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Raises `UserError` for a wrong command line instead of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Refuse a command line in one line."""
        raise UserError(f"{message}; see `{self.prog} --help`")


def verb(
    verbs: Verbs,
    name: str,
    execute: Execute,
    *,
    help: str,
    examples: Sequence[str],
    parents: Sequence[argparse.ArgumentParser] = (),
) -> argparse.ArgumentParser:
    """Add a verb.

    Args:
        verbs: from `add_subparsers`.
        name: the word on the command line.
        execute: carries it out and returns the exit code.
        help: one line, without a full stop.
        examples: two command lines, without `RUN`; `--help` ends with them.
        parents: parsers whose options it shares.

    Returns:
        The verb's parser, for its own options.
    """
    parser = verbs.add_parser(
        name,
        parents=list(parents),
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        epilog=epilog(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(execute=execute)
    return parser


def epilog(examples: Sequence[str]) -> str:
    """The last lines of a verb's help."""
    return "\n".join(["examples:", *(f"  {RUN} {example}" for example in examples)])


def folders() -> Parser:
    """The parent of verbs that read the data folder or the run store: `--data`, `--runs`, `--workers`."""
    parser = Parser(add_help=False)
    parser.add_argument(
        "--data",
        type=folder,
        default=os.environ.get("SSMLL_DATA") or "data",
        help="folder of the datasets (default: $SSMLL_DATA or ./data)",
    )
    parser.add_argument(
        "--runs",
        type=folder,
        default=os.environ.get("SSMLL_RUNS") or "runs",
        help="folder of the run store (default: $SSMLL_RUNS or ./runs)",
    )
    parser.add_argument(
        "--workers",
        type=positive,
        default=None,
        metavar="N",
        help="worker processes (default: one a GPU, else one a core)",
    )
    return parser


def grid(*, required: bool = True) -> Parser:
    """The parent of verbs that take a grid, or a part of one.

    Args:
        required: whether the verb cannot do without a grid.
    """
    parser = Parser(add_help=False)
    text = "a grid's name, or the path of a .toml file"
    parser.add_argument(
        "--grid",
        required=required,
        default=None,
        type=one_line,
        help=text if required else f"only the runs of {text}",
    )
    parser.add_argument(
        "--ratios", type=ratio, nargs="+", default=[], help="only these ratios of the grid (0.05, '9 images')"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="only these seeds of the grid")
    parser.add_argument(
        "--split-seeds",
        type=int,
        nargs="+",
        default=[],
        help="only the labelled subsets of these seeds: of the grid's `split_seeds`, or else of its seeds",
    )
    parser.add_argument("--methods", nargs="+", default=[], help="only these methods of the grid, by label")
    parser.add_argument(
        "--strategy",
        default=None,
        metavar="NAME",
        help="how steps are spread over processes, instead of what the recipe says: "
        "ddp, or DeepSpeed's zero1 or zero2 (in a run's identity)",
    )
    return parser


def without_grid(args: argparse.Namespace) -> None:
    """Check a command line that names no grid.

    Raises:
        UserError: it chooses a part of one.
    """
    names = ("ratios", "seeds", "split_seeds", "methods", "strategy")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name)]
    if given:
        raise UserError(f"{', '.join(given)}: these choose runs of a grid; add --grid NAME")


def ratio(text: str) -> float | str:
    """A labelling budget on the command line: a share, "100 images" or "4 per class"."""
    from benchmarks.data.splits.budget import Budget

    return Budget.of(text, "--ratios").key


def outcome() -> Parser:
    """The parent of verbs that write tables or figures: `--rule` and `--out`."""
    parser = Parser(add_help=False)
    parser.add_argument(
        "--rule",
        choices=RULES,
        default="last",
        help="which number of a training: last (last epoch, EMA weights), model (last epoch, raw "
        "weights), val (epoch chosen on held-out labels), max (the better of last and model on test) or "
        "oracle (best epoch on test); the last two are not fair numbers",
    )
    parser.add_argument("--out", type=Path, default=None, help="folder for tables and figures")
    return parser


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the argument that `benchmarks.cli.kept.find` resolves."""
    parser.add_argument("run", metavar="RUN", help="start of a run's identity, or method/dataset/ratio/seed")


def check_out(out: Path | None) -> None:
    """Refuse a file that cannot be written, before any work.

    Raises:
        UserError: it is a folder, or its folder is missing or not to be written to.
    """
    if out is None:
        return
    if out.is_dir():
        raise UserError(f"--out {out}: it is a folder; name a file")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"--out {out}: {out.parent} may not be written to")


def workspace(args: argparse.Namespace) -> Workspace:
    """The folders that the command line names."""
    return Workspace(args.data, args.runs)


def load_grid(args: argparse.Namespace) -> Grid:
    """The grid that the command line names, or the part of it.

    Raises:
        UserError: a wrong grid file, or a part that it does not have.
    """
    from benchmarks.plan.grid import load, restrict, with_strategy

    whole = load(args.grid)
    part = restrict(whole, args.ratios, args.seeds, args.methods, args.split_seeds)
    return with_strategy(part, args.strategy)
