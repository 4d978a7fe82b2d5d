"""The verb `list`: the names that a grid can use, and the card of a method."""

from __future__ import annotations

import argparse

from benchmarks.cli import options


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    parser = options.verb(
        verbs,
        "list",
        list_names,
        help="list grids, recipes, methods and datasets; with a method's name, print its card",
        examples=["list '*match'", "list csaa"],
    )
    parser.add_argument(
        "pattern", nargs="?", default="*", help="wildcard, such as '*coop*', or the name of a method"
    )


def list_names(args: argparse.Namespace) -> int:
    """Print the names of grids, recipes, methods and datasets that match a wildcard; of one method, its card.

    Raises:
        UserError: nothing has such a name.
    """
    from fnmatch import fnmatch

    import methods
    from benchmarks.data.registry import available as datasets
    from benchmarks.plan import grid
    from methods.errors import UserError, nearest

    if args.pattern in methods.available():
        from benchmarks.cli.cards import card

        print(card(args.pattern))
        return 0
    sections = {
        "grids": grid.available("grids"),
        "recipes": grid.available("recipes"),
        "methods": methods.available(),
        "datasets": datasets(),
    }
    found = {
        title: [name for name in names if fnmatch(name, args.pattern)] for title, names in sections.items()
    }
    if not any(found.values()):
        every = sorted({name for names in sections.values() for name in names})
        raise UserError(f"nothing is named {args.pattern!r}{nearest(args.pattern, every)}")
    for title, names in found.items():
        if names:
            print(f"{title}: {', '.join(names)}")
    return 0
