"""`tables --diff OLD NEW`: which cells changed between tables that are written."""

from __future__ import annotations

import argparse

from benchmarks.cli import options
from methods.errors import UserError

OF_A_STORE = ("grid", "superseded", "published", "bib", "verify", "intervals", "ranks", "rope", "out")
"""Options of `tables` that are about the runs of a store."""


def show(args: argparse.Namespace) -> int:
    """Print which cells changed between written tables.

    Returns:
        0, whether or not something changed.

    Raises:
        StoreError: a file or folder is absent or damaged.
        UserError: an option that is about the runs of a store.
    """
    from results.differences import between, to_text

    options.without_grid(args)
    given = [f"--{name}" for name in OF_A_STORE if getattr(args, name)] + ["--rule"] * (args.rule != "last")
    if given:
        raise UserError(f"--diff compares tables that are written already; leave {', '.join(given)} out")
    print(to_text(*between(*args.diff)))
    return 0
